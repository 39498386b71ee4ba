"""Engines that run a padded graph: cells x tokens, T and S first, padding on the right.

Legend: B cells of a batch, L tokens of the longest, D encoder width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cellfoundry_model.embedder import Output
from cellfoundry_model.tokens import Tokens
from cellfoundry_serving.engines.tokenised import TokenisedEngine
from cellfoundry_serving.token_batches import padded


class PaddedEngine(TokenisedEngine):
    """Groups cells of like length and pads; a subclass runs the graphs.

    Attributes:
        max_tokens: padded tokens of one run of the graph.
        max_cells: cells of one.
        max_decoder_cells: cells of one run of the decoder.
    """

    max_tokens: ClassVar[int]
    max_cells: ClassVar[int]
    max_decoder_cells = 1

    @abstractmethod
    def run(
        self,
        value_BL: npt.NDArray[np.float32],
        position_BL: npt.NDArray[np.int64],
        length_B: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """Pool "all" of every cell, float32 (B, 4 D)."""

    def decode(
        self,
        output: Output,
        value_BL: npt.NDArray[np.float32],
        position_BL: npt.NDArray[np.int64],
        length_B: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """Gene embeddings (B, G, W) or expression (B, G), float32; only asked of an engine that has a decoder."""
        raise NotImplementedError(f"the {self.name} engine says that it has a decoder and lacks one")

    def batches(self, output: Output, lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """See TokenisedEngine.batches."""
        return padded(
            lengths, self.max_tokens, self.max_cells if output == "cell" else self.max_decoder_cells
        )

    def embed(self, output: Output, tokens: Tokens, cells: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """See TokenisedEngine.embed."""
        inputs = pad_cells(tokens, cells, pad_position=len(self.vocab_genes) + 2)
        return self.run(*inputs) if output == "cell" else self.decode(output, *inputs)


def pad_cells(
    tokens: Tokens, cells: npt.NDArray[np.int64], pad_position: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Packed tokens of ``cells`` as (value_BL, position_BL, length_B): T, S, then the genes, then padding."""
    starts, ends = tokens.cu_seqlens[cells], tokens.cu_seqlens[cells + 1]
    length_B = (ends - starts).astype(np.int64)
    value_BL = np.zeros((len(cells), length_B.max()), dtype=np.float32)
    position_BL = np.full(value_BL.shape, pad_position, dtype=np.int64)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        for padded_BL, packed_N in ((value_BL, tokens.value_N), (position_BL, tokens.position_N)):
            padded_BL[row, :2] = packed_N[end - 2 : end]
            padded_BL[row, 2 : end - start] = packed_N[start : end - 2]
    return value_BL, position_BL, length_B
