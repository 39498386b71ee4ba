"""Runs the files of ``interpreted/`` in Triton's interpreter."""

from __future__ import annotations

import pytest
from twins import PROCESSES, run_alone

pytest.importorskip("triton", reason="triton exists on Linux only")


@pytest.mark.parametrize("files", PROCESSES.values(), ids=PROCESSES)
def test_triton_twins_in_the_interpreter(files: list[str]) -> None:
    run_alone(files, {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
