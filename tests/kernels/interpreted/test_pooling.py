"""pool_cells, in Triton's interpreter, against the float64 reference (run by ../test_triton_interpreter.py)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from twins import (
    DTYPES,
    assert_as_exact_as_the_reference,
    assert_compiles_whole,
    gpu_only,
    interpreter_only,
    with_gradients,
)

from cellfoundry_bench.ragged import cu_seqlens_of
from cellfoundry_kernels import pool_cells
from cellfoundry_kernels.pooling import kernel, reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["all", "max"])
@pytest.mark.parametrize("width", [pytest.param(5, id="d5"), pytest.param(70, id="d70")])
def test_pool_cells(dtype: torch.dtype, mode: str, width: int) -> None:
    assert_pools_as_the_reference([70, 2, 0, 33, 3], width, mode, dtype)


@gpu_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["all", "max"])
def test_ten_thousand_tiny_cells(dtype: torch.dtype, mode: str) -> None:
    assert_pools_as_the_reference([cell % 9 for cell in range(10_000)], 70, mode, dtype)


def assert_pools_as_the_reference(lengths: list[int], width: int, mode: str, dtype: torch.dtype) -> None:
    cu_seqlens = cu_seqlens_of(lengths)
    has_genes = torch.tensor(lengths) > 2
    x = torch.randn(sum(lengths), width).to(dtype)
    grad = torch.randn(len(lengths), width * (4 if mode == "all" else 1)).to(dtype)
    ours, low, exact = (
        with_gradients(lambda x, op=op: op(x, cu_seqlens, mode), [x], grad)
        for op, x in ((pool_cells, x), (reference.pool_cells, x), (reference.pool_cells, x.double()))
    )
    for pooled in (ours, low, exact):
        assert pooled[0].isnan().all(1).tolist() == (~has_genes).tolist()
        pooled[0] = pooled[0][has_genes]
    assert_as_exact_as_the_reference(ours, low, exact)


@pytest.mark.parametrize("mode", ["all", "max"])
def test_the_gradient_of_a_maximum_goes_to_the_first_of_equal_tokens(mode: str) -> None:
    x = torch.randint(3, (200, 4)).float()
    x[:, 3] = -torch.inf
    cu_seqlens, grad = cu_seqlens_of([150, 50]), torch.randn(2, 16 if mode == "all" else 4)
    ours = with_gradients(lambda x: pool_cells(x, cu_seqlens, mode), [x], grad)
    expected = with_gradients(lambda x: reference.pool_cells(x, cu_seqlens, mode), [x], grad)
    for actual, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("mode", ["all", "max"])
def test_pool_cells_does_not_lose_a_nan(mode: str) -> None:
    x = torch.randn(6, 3)
    x[1, 2] = torch.nan
    assert pool_cells(x, cu_seqlens_of([6]), mode)[0, -3:].isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("mode", ["all", "max"])
def test_tokens_and_gradients_may_lie_anywhere(mode: str) -> None:
    x, cu_seqlens = torch.randn(7, 2, 40).permute(2, 1, 0)[:, 0], cu_seqlens_of([30, 10])
    grad = torch.randn(28 if mode == "all" else 7, 2).T
    assert not x.is_contiguous()
    assert not grad.is_contiguous()
    op = partial(pool_cells, cu_seqlens=cu_seqlens, mode=mode)
    dense = with_gradients(op, [x.contiguous()], grad.contiguous())
    for ours, expected in zip(with_gradients(op, [x], grad), dense, strict=True):
        assert torch.equal(ours, expected)


@interpreter_only
@pytest.mark.parametrize("mode", ["all", "max"])
def test_tokens_beyond_two_to_the_31_elements(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """One cell behind 2^28 tokens of nobody, which are reserved but never touched."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    first, width = 2**28, 8
    x = torch.empty(first + 70, width, dtype=torch.float16)
    x[first:] = torch.randn(70, width)
    grad = torch.randn(1, width * (4 if mode == "all" else 1)).half()
    far, near = cu_seqlens_of([70]) + first, cu_seqlens_of([70])
    ours = with_gradients(lambda x: pool_cells(x, far, mode), [x], grad)
    expected = with_gradients(lambda x: pool_cells(x, near, mode), [x[first:]], grad)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1][first:], expected[1])


@pytest.mark.parametrize("mode", ["all", "max"])
def test_pool_cells_is_a_registered_op(mode: str) -> None:
    cu_seqlens, x = cu_seqlens_of([9, 4]), torch.randn(13, 6, requires_grad=True)
    torch.library.opcheck(kernel._forward, (x, cu_seqlens, mode == "all"))
    place = torch.zeros(2, 6, dtype=torch.int32)
    grad = torch.randn(2, 24 if mode == "all" else 6)
    torch.library.opcheck(kernel._backward, (grad, cu_seqlens, place, 13, mode == "all"))
    assert_compiles_whole(lambda x: pool_cells(x, cu_seqlens, mode), [x], grad)


def test_nothing_to_do_launches_nothing() -> None:
    assert pool_cells(torch.empty(0, 4), cu_seqlens_of([]), "all").shape == (0, 16)
    assert pool_cells(torch.empty(0, 4), cu_seqlens_of([0, 0]), "all").isnan().all()
