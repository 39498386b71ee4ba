"""From an epoch's order to the batches of one rank: windows are planned, whole steps kept, batches put together."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.loader.batching import Batches, Batching
from cellfoundry_data.loader.order import Drawn, EpochOrder
from cellfoundry_data.loader.permutation import salt
from cellfoundry_data.loader.windows import concatenate, view

T = TypeVar("T")


@dataclass(frozen=True)
class Cursor:
    """Where a window begins: all that planning it needs to know of the windows before.

    Attributes:
        window: its number in the epoch.
        first_cell: cells of the epoch before it.
        first_batch: number of the first batch that begins in it.
        drawn: what was drawn before it, for orders that draw.
    """

    window: int = 0
    first_cell: int = 0
    first_batch: int = 0
    drawn: Drawn = ()


@dataclass(frozen=True)
class Plan:
    """One window: its cells in batches, where it begins, and where the next one does."""

    batches: Batches
    cursor: Cursor
    following: Cursor

    def complete(self, step: int) -> int:
        """Number of the first batch that is not complete after this window.

        One that goes on in the next window may be the epoch's short one, which is handed out only where a step is one
        batch: a step in which one of several has fewer cells would give these too much weight.
        """
        is_open = step > 1 and self.batches.open_number is not None
        return self.following.first_batch - is_open


def plans(order: EpochOrder, batching: Batching, cursor: Cursor, epoch_salt: np.uint64) -> Iterator[Plan]:
    """The windows from ``cursor`` to the epoch's end; nothing is decoded."""
    for window in range(cursor.window, order.windows):
        rows, drawn = order.rows(window, cursor.drawn)
        seed = salt(int(epoch_salt), window)
        batches = batching.cut(rows, cursor.first_cell, cursor.first_batch, seed)
        following = Cursor(window + 1, cursor.first_cell + len(rows), batches.next_number, drawn)
        yield Plan(batches, cursor, following)
        cursor = following


@dataclass(frozen=True)
class Work:
    """A planned window of which it is known which of its batches belong to whole steps.

    Attributes:
        batches: the window's.
        end: number of the first batch that no longer makes a whole step.
        cursors: of this window and of all that are planned after it.
    """

    batches: Batches
    end: int
    cursors: tuple[Cursor, ...]


def whole_steps(planned: Iterable[Plan], start: int, step: int) -> Iterator[Work]:
    """The windows as soon as the steps that their batches belong to are known to be whole: a step is
    ``step`` consecutive batches from ``start`` on, and those left at the epoch's end are left out, as is
    the short batch there with steps of more than one.
    """
    waiting: deque[Plan] = deque()

    def work(known: int) -> Work:
        end = start + (known - start) // step * step
        cursors = (*(plan.cursor for plan in waiting), waiting[-1].following)
        return Work(waiting.popleft().batches, end, cursors)

    known = start
    for plan in planned:
        waiting.append(plan)
        known = max(known, plan.complete(step))
        while waiting and (known - start) // step * step >= waiting[0].following.first_batch - start:
            yield work(known)
    while waiting:
        yield work(known)


def assemble(decoded: Iterable[tuple[CellBatch, Batches]]) -> Iterator[tuple[int, CellBatch]]:
    """Batches with their numbers, as views of their windows, from one rank's cells of each window; a batch that
    goes on in the next window is copied together.
    """
    rest: CellBatch | None = None
    number = 0
    for cells, batches in decoded:
        bounds = [0, *(np.flatnonzero(np.diff(batches.number)) + 1).tolist(), len(cells)]
        for first, last in itertools.pairwise(bounds):
            number, batch = int(batches.number[first]), view(cells, first, last)
            if rest is not None:
                batch, rest = concatenate(rest, batch), None
            if number == batches.open_number:
                rest = batch
            else:
                yield number, batch
    if rest is not None:
        yield number, rest


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one always computed in a background thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="cellfoundry-loader") as background:
        ahead = background.submit(next, items, None)
        while (item := ahead.result()) is not None:
            ahead = background.submit(next, items, None)
            yield item
