"""Engines that run an exported graph: cells become tokens, batches of them go through the graph.

Legend: B cells of a batch, D encoder width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.embedder import Output, Pool
from cellfoundry_model.tokens import InputType, PreNormalized, Tokens, tokenize
from cellfoundry_serving.engines.base import POOLS, Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.token_batches import SPECIAL_TOKENS


class TokenisedEngine(Engine):
    """Tokenises, and puts batches of cells through a graph; a subclass says how they are batched and laid out.

    Attributes:
        has_decoder: whether there is a graph for gene embeddings and expression.
        decoder_width: width of a gene embedding.
    """

    has_decoder = False
    decoder_width = 0

    @abstractmethod
    def batches(self, output: Output, lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """Positions of the cells of each run, for cells of these numbers of tokens; each cell occurs once."""

    @abstractmethod
    def embed(self, output: Output, tokens: Tokens, cells: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """One run: pool "all" (B, 4 D), gene embeddings or expression of ``cells``, rows of ``tokens``, float32."""

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
        for group in self.batches(output, lengths[rows]):
            cells = rows[group]
            result = self.embed(output, tokens, cells)
            embedding[cells] = max_from_all(result) if output == "cell" and pool == "max" else result
        return embedding


def max_from_all(all_B4D: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Pool "max" from pool "all": the maximum over all tokens is that of S, T and the genes' maximum."""
    s_BD, t_BD, gene_max_BD, _ = np.split(all_B4D, 4, axis=1)
    return np.maximum(np.maximum(s_BD, t_BD), gene_max_BD)
