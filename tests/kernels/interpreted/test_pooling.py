"""pool_cells, in Triton's interpreter, against the float64 reference (run by ../test_triton_interpreter.py)."""

from __future__ import annotations

import pytest
import torch
from twins import DTYPES, cu_seqlens_of, with_gradients

from cellfoundry_kernels import pool_cells
from cellfoundry_kernels.pooling import reference


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
    assert pool_cells(torch.empty(0, 4), cu_seqlens_of([]), "all").shape == (0, 16)
