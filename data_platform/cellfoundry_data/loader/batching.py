"""Cutting a window's cells into batches: a fixed number of cells, or a budget of tokens.

Either way batches are numbered over the epoch, and batch ``g`` goes to rank ``g % world_size``: what the ranks
get at one step are consecutive batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cellfoundry_data.errors import DataError
from cellfoundry_data.loader.permutation import permutation

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batches:
    """A window's cells in the order in which they are handed out.

    Attributes:
        rows: int64, (places,); store rows.
        number: int64, (places,), ascending; number of each cell's batch in the epoch.
        next_number: number of the first batch that begins after this window.
        open_number: number of the batch that goes on in the next window, if there is one.
    """

    rows: Int64
    number: Int64
    next_number: int
    open_number: int | None = None


class Batching(Protocol):
    """How the cells of an epoch become batches."""

    def cut(self, rows: Int64, first_cell: int, first_number: int, seed: np.uint64) -> Batches:
        """Batches of one window.

        Args:
            rows: the window's cells in random order, (places,).
            first_cell: cells of the epoch before this window.
            first_number: number of the first batch that begins in this window.
            seed: for the order of the batches.
        """


@dataclass(frozen=True)
class FixedCells:
    """Batches of ``cells`` cells; one may begin in a window and end in another, the epoch's last may be short."""

    cells: int

    def cut(self, rows: Int64, first_cell: int, first_number: int, seed: np.uint64) -> Batches:
        """See ``Batching``."""
        end = first_cell + len(rows)
        open_number = end // self.cells if end % self.cells else None
        return Batches(rows, np.arange(first_cell, end) // self.cells, -(-end // self.cells), open_number)


@dataclass(frozen=True)
class TokenBudget:
    """Batches of at most ``budget`` tokens, each from cells of nearly one length.

    Sorted by length, cells are dealt in turns to ``step_batches`` batches until one more turn would exceed the
    budget: equal numbers of cells, nearly equal tokens and squared lengths, so attention costs every rank the
    same. These groups of batches come in random order. The cells of middle length fill the step that a window
    begins with (which an earlier window began) and the one it ends with. So groups begin at multiples of
    ``step_batches``, counted from the epoch's first batch.

    Attributes:
        budget: tokens a batch; a cell has one a gene and ``special_tokens``, at least one.
        special_tokens: of each cell.
        step_batches: batches of a group.
        row_nnz: genes of the cells at given rows, (rows,) each.
    """

    budget: int
    special_tokens: int
    step_batches: int
    row_nnz: Callable[[Int64], npt.NDArray[np.integer]]

    def cut(self, rows: Int64, first_cell: int, first_number: int, seed: np.uint64) -> Batches:
        """See ``Batching``; DataError for a cell that exceeds the budget alone."""
        tokens = np.maximum(self.row_nnz(rows).astype(np.int64) + self.special_tokens, 1)
        self._check(rows, tokens)
        by_length = np.argsort(tokens, kind="stable")
        head, groups, tail = self._groups(tokens[by_length], -first_number % self.step_batches)
        order = permutation(len(groups), seed)
        batches = [*head, *(batch for group in order for batch in groups[group]), *tail]
        numbers = np.repeat(np.arange(len(batches)) + first_number, [len(batch) for batch in batches])
        places = np.concatenate([np.empty(0, np.int64), *batches])
        return Batches(rows[by_length[places]], numbers, first_number + len(batches))

    def _groups(self, tokens: Int64, head: int) -> tuple[list[Int64], list[list[Int64]], list[Int64]]:
        """Batches of places in ``tokens``, which ascend: ``head`` to begin with (fewer only if no group
        follows), whole groups, a rest.
        """
        first, last = 0, len(tokens)
        groups: list[list[Int64]] = []
        while True:
            # From both ends in turn, so that the middle is left.
            from_below = len(groups) % 2 == 0
            places = np.arange(first, last) if from_below else np.arange(last - 1, first - 1, -1)
            turns = self._turns(tokens[places])
            taken = turns * self.step_batches
            if turns == 0 or last - first - taken < head * turns:
                break
            groups.append(deal(places[:taken], self.step_batches))
            first, last = (first + taken, last) if from_below else (first, last - taken)
        middle = self._fewest(tokens, np.arange(first, last), least=head if groups else 0)
        return middle[:head], groups, middle[head:]

    def _turns(self, tokens: Int64) -> int:
        """Turns of dealing that fill a group of batches within the budget; 0 if the cells run out before."""
        turns = len(tokens) // self.step_batches
        # A group never needs more cells than budget / shortest: bounds the work to what is used.
        turns = min(turns, self.budget // max(int(tokens.min(initial=1)), 1) + 1)
        table = tokens[: turns * self.step_batches].reshape(turns, self.step_batches).copy()
        table[1::2] = table[1::2, ::-1]
        fitting = int(np.searchsorted(np.cumsum(table, axis=0).max(axis=1, initial=0), self.budget, "right"))
        return fitting if fitting < turns else 0

    def _fewest(self, tokens: Int64, places: Int64, least: int) -> list[Int64]:
        """The cells dealt to as few batches as the budget allows, but not fewer than ``least``."""
        batches = max(-(-int(tokens[places].sum()) // self.budget), least)
        while True:
            dealt = deal(places, batches) if batches else []
            if all(tokens[batch].sum() <= self.budget for batch in dealt):
                return dealt
            batches += 1

    def _check(self, rows: Int64, tokens: Int64) -> None:
        if len(tokens) and tokens.max() > self.budget:
            longest = int(tokens.argmax())
            raise DataError(
                f"the cell in row {rows[longest]} has {tokens[longest]:,} tokens and batch_tokens is "
                f"{self.budget:,}: raise batch_tokens, or leave such cells out with "
                f"where={{'n_genes': (0, {self.budget - self.special_tokens})}}."
            )


def deal(places: Int64, batches: int) -> list[Int64]:
    """``places`` dealt to ``batches`` hands, there and back: 0 1 2, 2 1 0, 0 1 2, ...; the hands differ by at
    most one in number.
    """
    turns = -(-len(places) // batches)
    table = np.full((turns, batches), -1, np.int64)
    table.reshape(-1)[: len(places)] = places
    table[1::2] = table[1::2, ::-1]
    return [hand[hand >= 0] for hand in table.T]
