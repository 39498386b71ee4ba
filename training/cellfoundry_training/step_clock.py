"""Where a step's time goes, without waits of its own.

On CPU phases are bounded by the wall clock. On CUDA an event marks each boundary in the stream, and the events are
read once the step's loss was fetched, by when all of them have passed: timing adds no synchronisation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("data", "mask", "forward", "backward", "optimizer", "communication")
"""Phases of a step; what is collective inside a backward pass or an update counts as communication."""


class StepClock:
    """Seconds of each phase of one step, and what the rank is doing now.

    Attributes:
        phase: what the rank does now, a phase of ``PHASES`` or any other word between steps.
        collectives: collectives entered so far; a rank that others wait for has entered fewer.
    """

    def __init__(self, device: torch.device) -> None:
        self.phase = "start"
        self.collectives = 0
        self._on_cuda = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self, phase: str) -> None:
        """Begin a step with ``phase``."""
        self._marks.clear()
        self.enter(phase)

    def enter(self, phase: str) -> None:
        """End the present phase and begin ``phase``."""
        self.phase = phase
        self._marks.append((phase, self._now()))

    @contextmanager
    def communicating(self) -> Iterator[None]:
        """Count the body as communication, then go on with the phase around it."""
        around = self.phase
        self.collectives += 1
        self.enter("communication")
        try:
            yield
        finally:
            self.enter(around)

    def stop(self) -> None:
        """End the step's last phase."""
        self.enter("between steps")

    def seconds(self) -> dict[str, float]:
        """Seconds of each of ``PHASES`` in the step that was stopped; on CUDA call it after a wait for the stream."""
        spent = dict.fromkeys(PHASES, 0.0)
        for (phase, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            spent[phase] += _between(begin, end)
        return spent

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return begin.elapsed_time(end) / 1e3
    assert isinstance(end, float)
    return end - begin
