"""Clocks, and the one way two things are compared: alternating rounds in one run, medians of the rounds.

Alternating is what makes a ratio hold on a shared machine: a neighbour's load falls on both sides alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from cellfoundry_bench.results import Row

Clock = Callable[[], float]


def wall_clock() -> float:
    """Seconds of wall time, after everything queued on the CUDA device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def cpu_clock() -> float:
    """CPU-seconds (user and system) of this process over all its threads, children not included."""
    return time.process_time()


def seconds(work: Callable[[], object], clock: Clock = wall_clock) -> float:
    """Seconds that one call of ``work`` takes by ``clock``."""
    start = clock()
    work()
    return clock() - start


def median_seconds(work: Callable[[], object], *, rounds: int = 5, clock: Clock = wall_clock) -> float:
    """Median seconds of ``rounds`` calls, after one call that warms caches and is not counted."""
    work()
    return median(seconds(work, clock) for _ in range(rounds))


@dataclass(frozen=True)
class Comparison:
    """Seconds of each round; round i of ours and of the peer ran one after the other."""

    ours: list[float]
    peer: list[float]

    @property
    def ratio(self) -> float:
        """Median of the peer's seconds over the median of ours: above 1, ours is faster."""
        return median(self.peer) / median(self.ours)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Lowest and highest ratio of a single round."""
        ratios = [peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]
        return min(ratios), max(ratios)

    def rate_row(
        self, what: str, amount: float, unit: str, peer: str, *, bar: float | None = None, note: str = ""
    ) -> Row:
        """Row of ``amount`` per second on both sides."""
        return Row(
            what,
            amount / median(self.ours),
            unit,
            peer,
            amount / median(self.peer),
            self.ratio,
            self.ratio_range,
            bar,
            note=note,
        )


def compare(
    ours: Callable[[], object], peer: Callable[[], object], *, rounds: int = 5, clock: Clock = wall_clock
) -> Comparison:
    """Time both sides in turn, ``rounds`` times each, after one uncounted call of either."""
    ours()
    peer()
    timed = [(seconds(ours, clock), seconds(peer, clock)) for _ in range(rounds)]
    return Comparison([pair[0] for pair in timed], [pair[1] for pair in timed])
