"""The one thread in which all engines of an endpoint compute, and how much stands before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Timing:
    """When a call began and ended in the thread, in seconds of ``time.perf_counter``; None before."""

    began: float | None = None
    ended: float | None = None


@dataclass
class EngineThread:
    """Calls one after another, in the order in which they came.

    Attributes:
        waits: by whoever gives it calls, the seconds of computing that are with him, estimated.
    """

    executor: ThreadPoolExecutor
    waits: dict[object, Callable[[], float]] = field(default_factory=dict)

    async def run(self, work: Callable[[], Any], timing: Timing) -> Any:
        """What ``work`` gives; fills ``timing`` whether it raises or not."""

        def timed() -> Any:
            timing.began = time.perf_counter()
            try:
                return work()
            finally:
                timing.ended = time.perf_counter()

        return await asyncio.get_running_loop().run_in_executor(self.executor, timed)

    def wait_s(self) -> float:
        """Seconds until all that is here is computed, estimated."""
        return sum(wait() for wait in self.waits.values())
