"""The one interface behind which torch, ONNX Runtime and TensorRT compute embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.embedder import Output, Pool
from cellfoundry_model.tokens import InputType, PreNormalized

POOLS: tuple[Pool, ...] = ("all", "max")


class Engine(ABC):
    """Computes embeddings of ragged batches of cells.

    Attributes:
        name: "torch", "onnx" or "tensorrt".
        precision: of the arithmetic: "fp32", "fp16", "bf16" or "int8".
        why: one sentence: why this engine runs, and on what; without folders, as clients are told of it.
        info: facts about the model; always weights_sha256 and vocabulary_sha256.
        vocab_genes: gene names in position order.
        encoder_width: width of one token.
        sizes: of the architecture by name, where it was opened from a folder; so is ``card``.
        card: the text of MODEL_CARD.md, empty where there is none.
    """

    name: ClassVar[str]
    precision: str = "fp32"

    def __init__(
        self, vocab_genes: Sequence[str], encoder_width: int, info: dict[str, Any], why: str
    ) -> None:
        self.vocab_genes = tuple(vocab_genes)
        self.encoder_width = encoder_width
        self.info = info
        self.why = why
        self.sizes: dict[str, Any] = {}
        self.card = ""

    @abstractmethod
    def encode(
        self,
        batch: CellBatch,
        *,
        output: Output = "cell",
        pool: Pool = "all",
        target: str = "t4",
        input_type: InputType = "singlecell",
        pre_normalized: PreNormalized = "F",
        totals: npt.NDArray[np.float64] | None = None,
        bulk_median: float | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embeddings in the batch's row order, float32; a cell without counts gives a row of NaN.

        Memory is bounded for any number of cells: an engine cuts the batch by tokens.

        Args:
            batch: cells over the model's vocabulary.
            output: "cell" (cells, width), "gene" (cells, genes, width) or "expression" (cells, genes).
            pool: "all" (S, T, max and mean over genes) or "max" (over all tokens); cell output only.
            target: depth T asked for: "tN", "fN" or "aN".
            input_type: "singlecell" or "bulk".
            pre_normalized: "F" counts, "T" values as they are, "A" values and ``totals``.
            totals: total count of each cell, (cells,); for "A".
            bulk_median: median row total of the whole table; for bulk counts.

        Raises:
            ServingError: this engine cannot compute ``output`` or ``pool``.
        """

    @abstractmethod
    def shape(self, output: Output, pool: Pool) -> tuple[int, ...]:
        """Shape of one cell's result; a ValueError of its layer for an unknown output or pool."""
