"""Engines that run a packed graph: the tokens of a batch's cells one after another, T and S first in each.

Legend: N tokens of all cells, B cells of a batch, D encoder width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cellfoundry_model.embedder import Output
from cellfoundry_model.tokens import Tokens
from cellfoundry_serving.engines.tokenised import TokenisedEngine
from cellfoundry_serving.token_batches import SPECIAL_TOKENS, consecutive


class PackedEngine(TokenisedEngine):
    """Cuts cells by tokens and joins them; a subclass runs the graph.

    Attributes:
        max_tokens: tokens of one run.
        max_cells: cells of one.
    """

    max_tokens: int
    max_cells: int

    @abstractmethod
    def run(
        self,
        value_N: npt.NDArray[np.float32],
        position_N: npt.NDArray[np.int64],
        cu_seqlens: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.float32]:
        """Pool "all" of every cell, float32 (B, 4 D)."""

    def batches(self, output: Output, lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """See TokenisedEngine.batches."""
        for cells in consecutive(lengths, self.max_tokens, self.max_cells):
            yield np.arange(cells.start, cells.stop)

    def embed(self, output: Output, tokens: Tokens, cells: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """See TokenisedEngine.embed."""
        return self.run(*pack_cells(tokens, cells))


def pack_cells(
    tokens: Tokens, cells: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Tokens of ``cells`` as (value_N, position_N, cu_seqlens): of each T, S, then the genes."""
    chosen = tokens.select(cells)
    lengths = np.diff(chosen.cu_seqlens)
    first_N, length_N = np.repeat(chosen.cu_seqlens[:-1], lengths), np.repeat(lengths, lengths)
    place_N = np.arange(len(first_N)) - first_N
    taken_N = first_N + (place_N - SPECIAL_TOKENS) % length_N  # T and S stand last in ``tokens``
    return chosen.value_N[taken_N], chosen.position_N[taken_N], chosen.cu_seqlens
