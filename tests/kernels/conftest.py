"""Shared by the kernel tests: which files run in Triton's interpreter, and the seed."""

from __future__ import annotations

import os

import pytest
import torch

# Triton decides at import whether it interprets, so those files run in a process of their own
# (test_triton_interpreter.py and test_triton_on_gpu.py start it).
ALONE = os.environ.get("TRITON_INTERPRET") == "1" or "CELLFOUNDRY_TEST_DEVICE" in os.environ
collect_ignore = [] if ALONE else ["interpreted"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Inputs are random but the same in every run."""
    torch.manual_seed(0)
