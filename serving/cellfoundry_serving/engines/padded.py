"""Engines that run a padded graph: cells x tokens, T and S first, padding on the right.

Legend: B cells of a batch, L tokens of the longest, D encoder width.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.embedder import Output, Pool
from cellfoundry_model.tokens import InputType, PreNormalized, Tokens, tokenize
from cellfoundry_serving.engines.base import POOLS, Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.token_batches import SPECIAL_TOKENS, padded


class PaddedEngine(Engine):
    """Tokenises, groups cells of like length and pads; a subclass runs the graphs.

    Attributes:
        has_decoder: whether there is a graph for gene embeddings and expression.
        decoder_width: width of a gene embedding.
        max_decoder_cells: cells of one run of the decoder.
    """

    max_tokens: ClassVar[int]  # padded tokens of one run of the graph
    max_cells: ClassVar[int]
    has_decoder = False
    decoder_width = 0
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

    def shape(self, output: Output, pool: Pool) -> tuple[int, ...]:
        """Shape of one cell's result; ServingError for the decoder's outputs where there is none."""
        if output in ("gene", "expression"):
            if not self.has_decoder:
                raise ServingError(
                    f"This {self.name} export computes cell embeddings only; use --engine torch for {output}."
                )
            genes = len(self.vocab_genes)
            return (genes, self.decoder_width) if output == "gene" else (genes,)
        if output != "cell":
            raise ServingError(f"Unknown output {output!r}; use cell, gene or expression.")
        if pool not in POOLS:
            raise ServingError(f"Unknown pool {pool!r}; use one of {', '.join(POOLS)}.")
        return (4 * self.encoder_width if pool == "all" else self.encoder_width,)

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
        """See Engine.encode."""
        embedding = np.full((len(batch), *self.shape(output, pool)), np.nan, dtype=np.float32)
        tokens = tokenize(
            batch,
            n_genes=len(self.vocab_genes),
            target=target,
            input_type=input_type,
            pre_normalized=pre_normalized,
            totals=totals,
            bulk_median=bulk_median,
        )
        lengths = np.diff(tokens.cu_seqlens).astype(np.int64)
        rows = np.flatnonzero(lengths > SPECIAL_TOKENS)
        max_cells = self.max_cells if output == "cell" else self.max_decoder_cells
        for group in padded(lengths[rows], self.max_tokens, max_cells):
            cells = rows[group]
            inputs = pad_cells(tokens, cells, pad_position=len(self.vocab_genes) + 2)
            if output != "cell":
                embedding[cells] = self.decode(output, *inputs)
                continue
            all_B4D = self.run(*inputs)
            embedding[cells] = all_B4D if pool == "all" else max_from_all(all_B4D)
        return embedding


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


def max_from_all(all_B4D: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Pool "max" from pool "all": the maximum over all tokens is that of S, T and the genes' maximum."""
    s_BD, t_BD, gene_max_BD, _ = np.split(all_B4D, 4, axis=1)
    return np.maximum(np.maximum(s_BD, t_BD), gene_max_BD)
