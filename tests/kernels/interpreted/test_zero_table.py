"""scatter_into_zero_table, in Triton's interpreter, against the reference (run by ../test_triton_interpreter.py)."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from twins import DTYPES, assert_as_exact_as_the_reference, interpreter_only, with_gradients

from cellfoundry_kernels import scatter_into_zero_table
from cellfoundry_kernels.zero_table import reference
from cellfoundry_kernels.zero_table.kernel import forward_kernel, tiles, zero_table_gradient
from cellfoundry_kernels.zero_table.kernel import scatter_into_zero_table as registered


def problem(cells: int, positions: int, width: int, tokens: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Table, tokens, and a cell and a position for each token, in no order; the last cell has none."""
    place_N = torch.randperm(max(cells - 1, 0) * positions)[:tokens]
    table_PD, encoder_ND = torch.randn(positions, width).to(dtype), torch.randn(tokens, width).to(dtype)
    return table_PD, encoder_ND, place_N // positions, place_N % positions


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("cells", "positions", "width", "tokens"),
    [(19, 11, 24, 70), (2, 1, 1, 1), (3, 9, 600, 5)],
    ids=["cells19-len11-d24", "cells2-len1-d1", "cells3-len9-d600"],
)
def test_rows_and_both_gradients(
    dtype: torch.dtype, cells: int, positions: int, width: int, tokens: int
) -> None:
    *inputs, cell, position = problem(cells, positions, width, tokens, dtype)
    grad = torch.randn(cells, positions, width).to(dtype)
    arguments = {"cell_index_N": cell, "position_N": position, "cells": cells}
    torch_op = partial(reference.scatter_into_zero_table, **arguments)
    ours = with_gradients(partial(scatter_into_zero_table, **arguments), inputs, grad)
    low = with_gradients(torch_op, inputs, grad)
    exact = with_gradients(torch_op, [x.double() for x in inputs], grad)
    # Rows and gradients of tokens are copies.
    assert torch.equal(ours[0], low[0])
    assert torch.equal(ours[2], low[2])
    assert_as_exact_as_the_reference(ours[1:2], low[1:2], exact[1:2])


def test_columns_and_gradients_may_lie_anywhere() -> None:
    table, encoder, cell, position = problem(3, 5, 4, 6, torch.float32)
    expected = reference.scatter_into_zero_table(table, encoder, cell, position, 3)
    assert torch.equal(
        scatter_into_zero_table(table.T.contiguous().T, encoder.T.contiguous().T, cell, position, 3), expected
    )
    grad = torch.randn(4, 5, 3).permute(2, 1, 0)
    dense = zero_table_gradient(grad.contiguous(), cell, position, torch.float32)
    assert torch.equal(zero_table_gradient(grad, cell, position, torch.float32), dense)


def test_a_table_of_another_dtype_is_cast_and_its_gradient_is_cast_back() -> None:
    table, encoder, cell, position = problem(3, 5, 4, 6, torch.float32)
    inputs, grad = [table, encoder.half()], torch.randn(3, 5, 4)
    op = partial(scatter_into_zero_table, cell_index_N=cell, position_N=position, cells=3)
    torch_op = partial(reference.scatter_into_zero_table, cell_index_N=cell, position_N=position, cells=3)
    for actual, expected in zip(
        with_gradients(op, inputs, grad), with_gradients(torch_op, inputs, grad), strict=True
    ):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@interpreter_only
def test_a_result_beyond_two_to_the_31_elements() -> None:
    """Only the first 8 of 2^28 positions are computed; the rest is memory that is reserved but never touched."""
    positions, width = 2**28, 8
    out = torch.from_numpy(np.empty((positions + 8) * width, dtype=np.float16))
    token = torch.from_numpy(np.empty(positions + 8, dtype=np.int32))
    token[:8] = torch.tensor([-1, 1, -1, -1, -1, -1, -1, -1])
    token[positions:] = torch.tensor([-1, -1, 0, -1, -1, -1, -1, -1])
    table, encoder = torch.randn(8, width).half(), torch.randn(2, width).half()
    forward_kernel[(1, 1, 1)](table, encoder, token, out, 2, positions, width, CELLS=2, **tiles(width))
    expected = reference.scatter_into_zero_table(
        table, encoder, torch.tensor([1, 0]), torch.tensor([2, 1]), 2
    )
    assert torch.equal(out[: 8 * width], expected[0].flatten())
    assert torch.equal(out[positions * width :], expected[1].flatten())


@interpreter_only
def test_a_gradient_beyond_two_to_the_31_elements() -> None:
    """Cells lie 2^31 elements apart, in memory that is reserved but, but for the rows used, never touched."""
    stride, positions, width = 2**31 + 32, 3, 8
    memory = torch.from_numpy(np.empty(stride + positions * width, dtype=np.float16))
    grad = memory.as_strided((2, positions, width), (stride, width, 1))
    grad.copy_(torch.randn(2, positions, width))
    cell, position = torch.tensor([0, 1]), torch.tensor([1, 2])
    expected = zero_table_gradient(grad.clone(), cell, position, torch.float32)
    assert torch.equal(zero_table_gradient(grad, cell, position, torch.float32), expected)


def test_nan_comes_out_where_it_went_in() -> None:
    table, encoder, cell, position = problem(3, 5, 4, 6, torch.float32)
    encoder[2, 1] = torch.nan
    out = scatter_into_zero_table(table, encoder, cell, position, 3)
    assert out.isnan().nonzero().tolist() == [[int(cell[2]), int(position[2]), 1]]


@pytest.mark.parametrize(("cells", "tokens"), [(0, 0), (2, 0)], ids=["cells0", "no-tokens"])
def test_no_cells_or_no_tokens(cells: int, tokens: int) -> None:
    *inputs, cell, position = problem(cells, 5, 4, tokens, torch.float32)
    op = partial(scatter_into_zero_table, cell_index_N=cell, position_N=position, cells=cells)
    out, grad_table, grad_encoder = with_gradients(op, inputs, torch.ones(cells, 5, 4))
    assert torch.equal(out, inputs[0].expand(cells, 5, 4))
    assert (grad_table == cells).all()
    assert grad_encoder.shape == (0, 4)


def test_registered_ops() -> None:
    table, encoder, cell, position = problem(3, 5, 4, 6, torch.float32)
    torch.library.opcheck(registered, (table.requires_grad_(), encoder.requires_grad_(), cell, position, 3))
    torch.library.opcheck(zero_table_gradient, (torch.randn(3, 5, 4), cell, position, torch.float16))


def test_compiles_into_one_graph() -> None:
    *inputs, cell, position = problem(3, 5, 4, 6, torch.float32)
    op = partial(scatter_into_zero_table, cell_index_N=cell, position_N=position, cells=3)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    grad = torch.randn(3, 5, 4)
    for actual, expected in zip(
        with_gradients(compiled, inputs, grad), with_gradients(op, inputs, grad), strict=True
    ):
        assert torch.equal(actual, expected)
