"""The decoder's input, each row of it written once, and the gradient of the table, each row read once.

An index (C, P) names the token that overwrites a row, if any: int32, a 256th of the result at width 512 in bf16.
A program holds a tile of the table and writes it for several cells, so the table is read a few times, not once a
cell: 256 cells x 19,266 positions x 512 in bf16 are 5.0 GB written, 0.3 GB of table and some 0.7 GB of tokens read.
Backward adds up, for each tile of the table and in the order of the cells, the gradient rows that no token overwrote;
the tokens' gradients are the other rows. Neither adds atomically.

Shape legend: N tokens over all cells, C cells, P positions, D width; kernel tiles: P positions, D columns.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cellfoundry_kernels.launch import TYPE_NAMES, Launch, LaunchOptions, argument_types, registered_op

BLOCK_P = 8
CELLS_A_PROGRAM = 16
OPTIONS: LaunchOptions = {"num_warps": 4, "num_stages": 2}


@triton.jit(do_not_specialize=["cells"])
def forward_kernel(
    table_ptr,
    encoder_ptr,
    token_ptr,
    out_ptr,
    cells,
    positions,
    width,
    CELLS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """A tile of positions and columns for ``CELLS`` cells: the table's rows, or those of encoder tokens."""
    position_P = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    column_1D = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    is_position_P = position_P < positions
    is_column_1D = column_1D < width
    is_inside_PD = is_position_P[:, None] & is_column_1D
    # 64 bit from here on: cells x positions x width passes 2^31 at 218 cells of the published model.
    offset_PD = position_P[:, None].to(tl.int64) * width + column_1D
    table_PD = tl.load(table_ptr + offset_PD, mask=is_inside_PD, other=0.0).to(out_ptr.dtype.element_ty)
    first = tl.program_id(2) * CELLS
    for cell in range(first, tl.minimum(first + CELLS, cells)):
        row_P = tl.cast(cell, tl.int64) * positions + position_P
        token_P = tl.load(token_ptr + row_P, mask=is_position_P, other=-1).to(tl.int64)
        is_token_P1 = (token_P >= 0)[:, None]
        encoder_offset_PD = token_P[:, None] * width + column_1D
        encoder_PD = tl.load(encoder_ptr + encoder_offset_PD, mask=is_token_P1 & is_column_1D, other=0.0)
        row_PD = tl.where(is_token_P1, encoder_PD, table_PD)
        tl.store(out_ptr + row_P[:, None] * width + column_1D, row_PD, mask=is_inside_PD)


@triton.jit(do_not_specialize=["cells"])
def table_gradient_kernel(
    grad_ptr,
    token_ptr,
    out_ptr,
    cell_stride,
    position_stride,
    column_stride,
    cells,
    positions,
    width,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Sum over cells of the gradient rows that no token overwrote, for a tile of positions and columns."""
    position_P = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    column_1D = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D))[None, :].to(tl.int64)
    is_position_P = position_P < positions
    is_column_1D = column_1D < width
    position_P1 = position_P[:, None].to(tl.int64)
    grad_offset_PD = position_P1 * position_stride + column_1D * column_stride
    sum_PD = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    for cell in range(0, cells):
        cell_64 = tl.cast(cell, tl.int64)
        token_P = tl.load(token_ptr + cell_64 * positions + position_P, mask=is_position_P, other=0)
        is_table_PD = (token_P < 0)[:, None] & is_column_1D
        grad_PD = tl.load(grad_ptr + cell_64 * cell_stride + grad_offset_PD, mask=is_table_PD, other=0.0)
        sum_PD += grad_PD.to(tl.float32)
    tl.store(
        out_ptr + position_P1 * width + column_1D,
        sum_PD.to(out_ptr.dtype.element_ty),
        mask=is_position_P[:, None] & is_column_1D,
    )


def tiles(width: int) -> dict[str, int]:
    """Tile sizes of both kernels."""
    return {"BLOCK_P": BLOCK_P, "BLOCK_D": min(triton.next_power_of_2(width), 512)}


def _token_index(cell_index_N: Tensor, position_N: Tensor, cells: int, positions: int) -> Tensor:
    """Token of each position of each cell, int32 (C, P); -1 where there is none."""
    token_CP = torch.full((cells, positions), -1, dtype=torch.int32, device=position_N.device)
    token_N = torch.arange(len(position_N), dtype=torch.int32, device=position_N.device)
    return token_CP.index_put_((cell_index_N, position_N), token_N)


@registered_op("scatter_into_zero_table")
def scatter_into_zero_table(
    zero_table_PD: Tensor, encoder_ND: Tensor, cell_index_N: Tensor, position_N: Tensor, cells: int
) -> Tensor:
    """As ``cellfoundry_kernels.zero_table``."""
    positions, width = zero_table_PD.shape
    out_CPD = torch.empty(cells, positions, width, dtype=encoder_ND.dtype, device=encoder_ND.device)
    if out_CPD.numel():
        blocks = tiles(width)
        grid = (
            triton.cdiv(positions, BLOCK_P),
            triton.cdiv(width, blocks["BLOCK_D"]),
            triton.cdiv(cells, CELLS_A_PROGRAM),
        )
        token_CP = _token_index(cell_index_N, position_N, cells, positions)
        forward_kernel[grid](
            *(zero_table_PD.contiguous(), encoder_ND.contiguous(), token_CP, out_CPD),
            *(cells, positions, width),
            CELLS=CELLS_A_PROGRAM,
            **blocks,
            **OPTIONS,
        )
    return out_CPD


@scatter_into_zero_table.register_fake
def _(
    zero_table_PD: Tensor, encoder_ND: Tensor, cell_index_N: Tensor, position_N: Tensor, cells: int
) -> Tensor:
    return encoder_ND.new_empty(cells, *zero_table_PD.shape)


@registered_op("zero_table_gradient")
def zero_table_gradient(
    grad_CPD: Tensor, cell_index_N: Tensor, position_N: Tensor, dtype: torch.dtype
) -> Tensor:
    """Gradient of the table from that of the result, (P, D), summed in float32."""
    cells, positions, width = grad_CPD.shape
    out_PD = torch.empty(positions, width, dtype=dtype, device=grad_CPD.device)
    if out_PD.numel():
        blocks = tiles(width)
        grid = (triton.cdiv(positions, BLOCK_P), triton.cdiv(width, blocks["BLOCK_D"]))
        token_CP = _token_index(cell_index_N, position_N, cells, positions)
        table_gradient_kernel[grid](
            *(grad_CPD, token_CP, out_PD, *grad_CPD.stride(), cells, positions, width), **blocks, **OPTIONS
        )
    return out_PD


@zero_table_gradient.register_fake
def _(grad_CPD: Tensor, cell_index_N: Tensor, position_N: Tensor, dtype: torch.dtype) -> Tensor:
    return grad_CPD.new_empty(grad_CPD.shape[1:], dtype=dtype)


def _save(ctx, inputs: tuple[Tensor, Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    zero_table_PD, _encoder_ND, cell_index_N, position_N, _cells = inputs
    ctx.save_for_backward(cell_index_N, position_N)
    ctx.table_dtype = zero_table_PD.dtype


def _backward(ctx, grad_CPD: Tensor) -> tuple[Tensor | None, ...]:
    cell_index_N, position_N = ctx.saved_tensors
    need_table, need_encoder = ctx.needs_input_grad[:2]
    return (
        zero_table_gradient(grad_CPD, cell_index_N, position_N, ctx.table_dtype) if need_table else None,
        grad_CPD[cell_index_N, position_N] if need_encoder else None,
        *(None, None, None),
    )


scatter_into_zero_table.register_autograd(_backward, setup_context=_save)


def published_launches() -> list[Launch]:
    """What runs at the widths of the presets' decoders."""
    kernels = ((forward_kernel, {"CELLS": CELLS_A_PROGRAM}), (table_gradient_kernel, {"column_stride": 1}))
    return [
        _launch(kernel, width, dtype, more)
        for width in (64, 128, 512)
        for dtype in (torch.float32, torch.bfloat16)
        for kernel, more in kernels
    ]


def _launch(kernel: Any, width: int, dtype: torch.dtype, more: dict[str, int]) -> Launch:
    constants = tiles(width) | more
    types = argument_types(kernel, dtype, constants, {"token_ptr": "*i32"})
    name = f"scatter_into_zero_table-{kernel.fn.__name__}-d{width}-{TYPE_NAMES[dtype]}"
    return Launch(name, kernel, types, constants, OPTIONS, ("width", "cell_stride", "position_stride"))
