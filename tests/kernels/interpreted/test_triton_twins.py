"""Triton twins, in Triton's interpreter, against the float64 references (run by ../test_triton_interpreter.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from cellfoundry_kernels import pool_cells, reference, value_embedding, varlen_attention

RelativeRms = Callable[[Tensor, Tensor], float]
# bf16 arithmetic is wrong in the interpreter, so it has no test here.
DTYPES = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.float16, id="fp16")]
RAGGED = [pytest.param([70, 2, 0, 33, 1], id="cells5-ragged")]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Deterministic torch fills new memory with NaN, so a result that a kernel forgot to write shows."""
    monkeypatch.setenv("CELLFOUNDRY_KERNELS", "triton")
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def cu_seqlens_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def assert_as_exact_as_the_reference(
    ours: list[Tensor], low: list[Tensor], exact: list[Tensor], relative_rms: RelativeRms
) -> None:
    """fp32 within 1e-5 of float64; fp16 within twice the error of torch's own op in fp16."""
    for actual, torch_own, expected in zip(ours, low, exact, strict=True):
        bound = 1e-5 if actual.dtype == torch.float32 else 2 * relative_rms(torch_own, expected)
        assert relative_rms(actual, expected) <= bound


def with_gradients(op: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = op(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("head_dim", [pytest.param(64, id="d64"), pytest.param(24, id="d24")])
def test_varlen_attention(
    dtype: torch.dtype, lengths: list[int], head_dim: int, relative_rms: RelativeRms
) -> None:
    cu_seqlens = cu_seqlens_of(lengths)
    inputs = list(torch.randn(sum(lengths), 3, 2, head_dim).to(dtype).unbind(1))
    grad = torch.randn(sum(lengths), 2, head_dim).to(dtype)

    def torch_op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.varlen_attention(q, k, v, cu_seqlens, 0.2)

    ours = with_gradients(lambda q, k, v: varlen_attention(q, k, v, cu_seqlens, 70, 0.2), inputs, grad)
    low = with_gradients(torch_op, inputs, grad)
    exact = with_gradients(torch_op, [x.double() for x in inputs], grad)
    assert_as_exact_as_the_reference(ours, low, exact, relative_rms)


def test_varlen_attention_copies_what_is_not_packed(relative_rms: RelativeRms) -> None:
    cu_seqlens = cu_seqlens_of([20, 9])
    q, k, v = (torch.randn(2, 29, 16).transpose(0, 1) for _ in range(3))
    expected = reference.varlen_attention(q.double(), k.double(), v.double(), cu_seqlens, 0.25)
    assert relative_rms(varlen_attention(q, k, v, cu_seqlens.long(), 20), expected) <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "bins", "width"),
    [(70, 100, 40), (1, 10, 8)],
    ids=["tokens70-bins100-d40", "tokens1-bins10-d8"],
)
def test_value_embedding(
    dtype: torch.dtype, tokens: int, bins: int, width: int, relative_rms: RelativeRms
) -> None:
    shapes = [(bins, 1), (bins,), (bins, bins), (bins,), (bins, width)]
    weights = [torch.randn(shape).to(dtype) / (bins**0.5 if shape == (bins, bins) else 1) for shape in shapes]
    inputs = [10 * torch.rand(tokens), *weights]
    grad = torch.randn(tokens, width).to(dtype)

    ours = with_gradients(partial(value_embedding, alpha=0.7), inputs, grad)
    torch_op = partial(reference.value_embedding, alpha=0.7)
    low = with_gradients(torch_op, inputs, grad)
    exact = with_gradients(torch_op, [x.double() for x in inputs], grad)
    if dtype == torch.float32:
        assert_as_exact_as_the_reference(ours, low, exact, relative_rms)
    else:  # backward is the reference itself there
        assert_as_exact_as_the_reference(ours[:1], low[:1], exact[:1], relative_rms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["all", "max"])
@pytest.mark.parametrize("width", [pytest.param(5, id="d5"), pytest.param(70, id="d70")])
def test_pool_cells(dtype: torch.dtype, mode: str, width: int) -> None:
    lengths = [70, 2, 0, 33, 3]
    cu_seqlens = cu_seqlens_of(lengths)
    x = torch.randn(sum(lengths), width).to(dtype)
    grad = torch.randn(5, width * (4 if mode == "all" else 1)).to(dtype)
    ours = with_gradients(lambda x: pool_cells(x, cu_seqlens, mode), [x], grad)
    expected = with_gradients(lambda x: reference.pool_cells(x, cu_seqlens, mode), [x], grad)
    for actual, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(actual, wanted, equal_nan=True)
    assert ours[0].isnan().all(1).tolist() == [False, True, True, False, False]


def test_pool_cells_does_not_lose_a_nan() -> None:
    x = torch.randn(6, 3)
    x[1, 2] = torch.nan
    assert pool_cells(x, cu_seqlens_of([6]), "max").isnan().tolist() == [[False, False, True]]


def test_nothing_to_do_launches_nothing() -> None:
    none = torch.empty(0, 2, 16)
    assert varlen_attention(none, none, none, cu_seqlens_of([]), 0).shape == (0, 2, 16)
    assert pool_cells(torch.empty(0, 4), cu_seqlens_of([]), "all").shape == (0, 16)
    weights = [torch.randn(shape) for shape in ((16, 1), (16,), (16, 16), (16,), (16, 8))]
    assert partial(value_embedding, alpha=1.0)(torch.empty(0), *weights).shape == (0, 8)
