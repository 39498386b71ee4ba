"""What all registered ops share: they run on their tensors' device, whatever device torch's current one is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from twins import interpreter_only, with_gradients

from cellfoundry_bench.ragged import cu_seqlens_of
from cellfoundry_kernels import launch, masked_mse, pool_cells, varlen_attention


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


class PooledAttention(torch.nn.Module):
    """Two of the ops, one behind the other, as a model has them."""

    def forward(self, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor) -> Tensor:
        out_NHK = varlen_attention(q_NHK, k_NHK, v_NHK, cu_seqlens, 9)
        return pool_cells(out_NHK.flatten(1), cu_seqlens, "all")


def test_an_exported_program_holds_the_ops() -> None:
    model, cu_seqlens = PooledAttention(), cu_seqlens_of([4, 9])
    qkv = [torch.randn(13, 1, 16) for _ in "qkv"]
    tokens = {0: torch.export.Dim("tokens", min=2, max=1_000)}
    program = torch.export.export(model, (*qkv, cu_seqlens), dynamic_shapes=(tokens, tokens, tokens, None))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"cellfoundry.varlen_attention.default", "cellfoundry.pool_cells.default"} <= called
    assert torch.equal(program.module()(*qkv, cu_seqlens), model(*qkv, cu_seqlens))
    more = *(torch.randn(17, 1, 16) for _ in "qkv"), cu_seqlens_of([8, 9])
    assert torch.equal(program.module()(*more), model(*more))


# Of inductor's own imports.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with a C++ compiler")
def test_inductor_runs_the_ops_forward_and_backward() -> None:
    model, cu_seqlens = PooledAttention(), cu_seqlens_of([4, 9])
    torch.compiler.reset()
    compiled = torch.compile(model, backend="inductor", fullgraph=True)
    inputs, grad = [torch.randn(13, 1, 16) for _ in "qkv"], torch.randn(2, 64)
    eager = with_gradients(lambda *qkv: model(*qkv, cu_seqlens), inputs, grad)
    ours = with_gradients(lambda *qkv: compiled(*qkv, cu_seqlens), inputs, grad)
    for actual, expected in zip(ours, eager, strict=True):
        torch.testing.assert_close(actual, expected)


def test_every_op_is_registered_that_way() -> None:
    kernels = sorted(Path(launch.__file__).parent.glob("*/kernel.py"))
    assert len(kernels) == 7
    for kernel in kernels:
        assert "@registered_op(" in kernel.read_text()
        assert "custom_op(" not in kernel.read_text()
