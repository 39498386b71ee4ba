"""The plain order of an epoch: chunks in random order, a window of them at a time, the window's cells in random
order.

Cells were shuffled over the whole store when it was written, so a window (128 chunks, about 7,800 cells) is a
sample of all sources. Every rank decompresses the chunks of every window for its own part of the cells: at 8 ranks
a cell costs a rank eight to nine times what it costs alone.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from cellfoundry_data.loader.permutation import CELLS, CHUNKS, permutation, permuted, salt
from cellfoundry_data.loader.selection import Selection

Int64 = npt.NDArray[np.int64]
Drawn = tuple[int, ...]
"""Cells that were drawn from each category since the epoch's start; empty where nothing is drawn."""


class EpochOrder(Protocol):
    """One epoch's cells, window after window.

    Attributes:
        windows: how many there are.
    """

    windows: int

    def rows(self, window: int, drawn: Drawn) -> tuple[Int64, Drawn]:
        """Store rows of a window in their order, (cells of the window,), and what is drawn after it.

        Args:
            window: its number in the epoch.
            drawn: what was drawn before it.
        """


class Order(Protocol):
    """The order of any epoch.

    Attributes:
        n_cells: cells of an epoch.
    """

    n_cells: int

    def epoch(self, number: int) -> EpochOrder:
        """The order of the epoch ``number``."""


class ShuffledChunks:
    """Every selected cell once an epoch; nothing of the size of the store is kept besides what is given.

    Args:
        first_rows: (chunks + 1,); first row of each chunk, then the number of rows.
        selection: the cells that take part; None for all.
        window_chunks: chunks of a window.
        seed: of the order.
    """

    def __init__(
        self,
        first_rows: npt.NDArray[np.integer],
        selection: Selection | None,
        *,
        window_chunks: int,
        seed: int,
    ) -> None:
        self.first_rows, self.selection = first_rows, selection
        self.window_chunks, self.seed = window_chunks, seed
        self.n_cells = int(first_rows[-1]) if selection is None else len(selection)

    def epoch(self, number: int) -> ShuffledEpoch:
        """The order of the epoch ``number``."""
        return ShuffledEpoch(self, number)


class ShuffledEpoch:
    """One epoch of ``ShuffledChunks``; see ``EpochOrder``."""

    def __init__(self, order: ShuffledChunks, number: int) -> None:
        self._order, self._number = order, number
        self._chunks = len(order.first_rows) - 1
        self.windows = -(-self._chunks // order.window_chunks)

    def rows(self, window: int, drawn: Drawn) -> tuple[Int64, Drawn]:
        """See ``EpochOrder``."""
        order, first = self._order, window * self._order.window_chunks
        last = min(first + order.window_chunks, self._chunks)
        chunks = permuted(first, last, self._chunks, salt(order.seed, self._number, CHUNKS))
        starts, stops = (order.first_rows[each].astype(np.int64) for each in (chunks, chunks + 1))
        rows = ranges(starts, stops)
        if order.selection is not None:
            rows = rows[order.selection.holds(rows)]
        return rows[permutation(len(rows), salt(order.seed, self._number, CELLS, window))], drawn


def ranges(starts: Int64, stops: Int64) -> Int64:
    """The numbers of every range ``starts[i]`` to ``stops[i] - 1``, one range after another; int64."""
    lengths = stops - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
