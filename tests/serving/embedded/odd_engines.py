"""Engines that wait, or fail, when a test wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.batcher import WARM_UPS
from cellfoundry_serving.engines.base import Engine

INFO = {"weights_sha256": "0", "vocabulary_sha256": "0"}


class GatedEngine(Engine):
    """Sums of counts; each call but those that warm up waits while ``gate`` is closed."""

    name = "torch"

    def __init__(self, genes: Sequence[str] = ("A", "B")) -> None:
        super().__init__(genes, 1, INFO, "for tests")
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.warm_ups = 0
        self.calls: list[int] = []  # cells of each after these

    def shape(self, output: str, pool: str) -> tuple[int, ...]:
        return (1,)

    def encode(self, batch: CellBatch, **conventions: Any) -> np.ndarray:
        if self.warm_ups < WARM_UPS:
            self.warm_ups += 1
        else:
            self.entered.set()
            assert self.gate.wait(30)
            self.calls.append(len(batch))
        return batch.totals().astype(np.float32)[:, None]


class BrokenEngine(Engine):
    """Warms up well, then fails with what no client should read."""

    name = "torch"

    def __init__(self, error: Exception) -> None:
        super().__init__(("A", "B"), 1, INFO, "for tests")
        self.error = error
        self.warm_ups = 0

    def shape(self, output: str, pool: str) -> tuple[int, ...]:
        return (1,)

    def encode(self, batch: CellBatch, **conventions: Any) -> np.ndarray:
        if self.warm_ups == WARM_UPS:
            raise self.error
        self.warm_ups += 1
        return np.zeros((len(batch), 1), np.float32)


def until(condition: Callable[[], bool]) -> None:
    """Returns once it is true."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
