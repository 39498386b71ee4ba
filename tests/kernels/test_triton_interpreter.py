"""Runs the files of ``interpreted/`` in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from twins import PROCESSES, run_alone

pytest.importorskip("triton", reason="triton exists on Linux only")


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Future[None]]]:
    """All of them at once, a core each: half a minute apiece."""
    environment = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    with ThreadPoolExecutor(min(len(PROCESSES), os.cpu_count() or 1)) as pool:
        yield {name: pool.submit(run_alone, files, environment) for name, files in PROCESSES.items()}


@pytest.mark.parametrize("name", PROCESSES)
def test_triton_twins_in_the_interpreter(runs: dict[str, Future[None]], name: str) -> None:
    runs[name].result()
