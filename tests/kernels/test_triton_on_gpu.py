"""Runs the files of ``interpreted/`` on a GPU, without the interpreter and with bfloat16 as well."""

from __future__ import annotations

import pytest
import torch
from twins import PROCESSES, run_alone


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("files", PROCESSES.values(), ids=PROCESSES)
def test_triton_twins_on_the_gpu(files: list[str]) -> None:
    # Deterministic products of cuBLAS need the workspace to be named.
    more = {"CELLFOUNDRY_TEST_DEVICE": "cuda", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TRITON_INTERPRET": "0"}
    run_alone(files, more)
