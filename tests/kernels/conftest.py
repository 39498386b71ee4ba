"""Shared by the kernel tests: the error measure, and which files run in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

# Triton decides at import whether it interprets, so those files run in a process of their own
# (test_triton_interpreter.py and test_triton_on_gpu.py start it).
ALONE = os.environ.get("TRITON_INTERPRET") == "1" or "CELLFOUNDRY_TEST_DEVICE" in os.environ
collect_ignore = [] if ALONE else ["interpreted"]


@pytest.fixture(scope="session")
def relative_rms() -> Callable[[Tensor, Tensor], float]:
    """RMS of the error over RMS of the expected values; a NaN on either side fails at once."""

    def measure(actual: Tensor, expected: Tensor) -> float:
        assert actual.shape == expected.shape
        assert not actual.isnan().any()
        assert not expected.isnan().any()
        actual, expected = actual.detach().double(), expected.detach().double()
        return float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())

    return measure


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Inputs are random but the same in every run."""
    torch.manual_seed(0)
