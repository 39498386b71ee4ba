"""A driven system's side: one JSON command a line in, one JSON answer a line out.

Runs in the peer's own environment, so it needs only the standard library and what that environment holds. What a
library prints goes to standard error; standard output carries answers alone.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class System(ABC):
    """A loader, as little of it as the comparison needs; extra settings arrive as keyword arguments."""

    def ready(self) -> None:  # noqa: B027 - most drivers have nothing to do here
        """Import what ``prepare`` needs, so that it is not timed."""

    @abstractmethod
    def prepare(self, sources: list[str], out: str, **settings: Any) -> None:
        """Convert the .h5ad files ``sources`` to the system's own form at ``out``."""

    @abstractmethod
    def open(self, path: str, batch_cells: int, **settings: Any) -> None:
        """Open what ``prepare`` wrote, ready for ``epoch``."""

    @abstractmethod
    def epoch(self) -> Iterable[Any]:
        """Shuffled batches of one pass over the cells, each new pass in another order."""

    @abstractmethod
    def content(self, batch: Any) -> tuple[int, int, float]:
        """Cells, non-zeros and the sum of the counts of a batch."""

    def cells(self, batch: Any) -> int:
        """Cells of a batch, as cheaply as the system can say."""
        return self.content(batch)[0]

    def ask(self, what: str, **settings: Any) -> dict[str, Any]:
        """Answers to questions that only this system knows."""
        raise ValueError(f"unknown command {what!r}")


class Meter:
    """CPU-seconds and wall seconds between two looks; background work between looks is counted with the next."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), cpu_seconds()

    def lap(self) -> dict[str, float]:
        """Seconds since the last look."""
        before, self.cpu = self.cpu, cpu_seconds()
        return {"wall_s": time.perf_counter() - self.wall, "cpu_s": self.cpu - before}

    def start_wall(self) -> None:
        """Wall seconds count from now; CPU-seconds go on from the last look."""
        self.wall = time.perf_counter()


def cpu_seconds() -> float:
    """User and system seconds of this process, all its threads, and its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def peak_bytes() -> int:
    """Largest resident memory of this process so far; pages of mapped files that were touched count too."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: a process starts with the one that its parent had when it forked.
        return next(int(line.split()[1]) * 1024 for line in status.open() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def serve(system: System) -> None:
    """Answer commands until standard input ends; an error is an answer too."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = _Session(system)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = session.answer(command.pop("do"), **command)
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Session:
    def __init__(self, system: System) -> None:
        self.system, self.meter = system, Meter()
        self._batches: Iterator[Any] = iter(())

    def answer(self, do: str, **settings: Any) -> dict[str, Any]:
        if do == "prepare":
            self.meter = Meter()
            self.system.prepare(**settings)
            return self.meter.lap() | {"peak_bytes": peak_bytes()}
        if do == "open":
            return self._open(**settings)
        if do == "read":
            return self._read(**settings)
        if do == "content":
            return self._content()
        if do == "ready":
            self.system.ready()
            return {"peak_bytes": peak_bytes()}
        return self.system.ask(do, **settings)

    def _open(self, **settings: Any) -> dict[str, Any]:
        """Seconds from nothing to the first batch; the pass goes on from there."""
        self._batches = iter(())
        self.meter = Meter()
        self.system.open(**settings)
        self._batches = self._endless()
        next(self._batches)
        return self.meter.lap()

    def _read(self, cells: int) -> dict[str, Any]:
        """Hand out at least ``cells`` cells."""
        self.meter.start_wall()
        done = 0
        while done < cells:
            done += self.system.cells(next(self._batches))
        return self.meter.lap() | {"cells": done, "peak_bytes": peak_bytes()}

    def _content(self) -> dict[str, Any]:
        """What one whole pass adds up to: the proof that every side hands out the same."""
        self._batches = iter(())
        cells, nnz, molecules = 0, 0, 0.0
        for batch in self.system.epoch():
            more = self.system.content(batch)
            cells, nnz, molecules = cells + more[0], nnz + more[1], molecules + more[2]
        return {"cells": cells, "nnz": nnz, "molecules": molecules}

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.system.epoch()
