"""What all registered ops share: they run on their tensors' device, whatever device torch's current one is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from twins import cu_seqlens_of, interpreter_only

from cellfoundry_kernels import launch, masked_mse, pool_cells


@interpreter_only
def test_launches_on_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    # No machine of the tests has two GPUs: what is seen is that the device is selected, forward and backward.
    selected: list[Tensor] = []

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        selected.append(tensor)
        yield

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    prediction = torch.randn(5, requires_grad=True)
    masked_mse(prediction, torch.randn(5)).backward()
    pool_cells(torch.randn(9, 4, requires_grad=True), cu_seqlens_of([4, 5]), "all").sum().backward()
    assert len(selected) == 4


def test_every_op_is_registered_that_way() -> None:
    kernels = sorted(Path(launch.__file__).parent.glob("*/kernel.py"))
    assert len(kernels) == 7
    for kernel in kernels:
        assert "@registered_op(" in kernel.read_text()
        assert "custom_op(" not in kernel.read_text()
