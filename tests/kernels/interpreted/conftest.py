"""Every test here runs the Triton twins, and finds what they forgot to write."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from twins import DEVICE

if DEVICE != "cpu":
    torch.set_default_device(DEVICE)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Deterministic torch fills new memory with NaN, so a result that a kernel forgot to write shows."""
    monkeypatch.setenv("CELLFOUNDRY_KERNELS", "triton")
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
