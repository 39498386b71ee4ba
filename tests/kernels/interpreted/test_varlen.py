"""varlen_attention, in Triton's interpreter, against the float64 reference (run by ../test_triton_interpreter.py)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from twins import DTYPES, assert_as_exact_as_the_reference, cu_seqlens_of, relative_rms, with_gradients

from cellfoundry_kernels import varlen_attention
from cellfoundry_kernels.varlen import reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [pytest.param([70, 2, 0, 33, 1], id="cells5-ragged")])
@pytest.mark.parametrize("head_dim", [pytest.param(64, id="d64"), pytest.param(24, id="d24")])
def test_varlen_attention(dtype: torch.dtype, lengths: list[int], head_dim: int) -> None:
    cu_seqlens = cu_seqlens_of(lengths)
    inputs = list(torch.randn(sum(lengths), 3, 2, head_dim).to(dtype).unbind(1))
    grad = torch.randn(sum(lengths), 2, head_dim).to(dtype)

    def torch_op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.varlen_attention(q, k, v, cu_seqlens, 0.2)

    ours = with_gradients(lambda q, k, v: varlen_attention(q, k, v, cu_seqlens, 70, 0.2), inputs, grad)
    low = with_gradients(torch_op, inputs, grad)
    exact = with_gradients(torch_op, [x.double() for x in inputs], grad)
    assert_as_exact_as_the_reference(ours, low, exact)


def test_varlen_attention_copies_what_is_not_packed() -> None:
    cu_seqlens = cu_seqlens_of([20, 9])
    q, k, v = (torch.randn(2, 29, 16).transpose(0, 1) for _ in range(3))
    expected = reference.varlen_attention(q.double(), k.double(), v.double(), cu_seqlens, 0.25)
    assert relative_rms(varlen_attention(q, k, v, cu_seqlens.long(), 20), expected) <= 1e-5


def test_nothing_to_do_launches_nothing() -> None:
    none = torch.empty(0, 2, 16)
    assert varlen_attention(none, none, none, cu_seqlens_of([]), 0).shape == (0, 2, 16)
