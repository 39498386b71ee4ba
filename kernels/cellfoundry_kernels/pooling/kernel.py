"""Pooling of ragged cells: one pass over the tokens gives maximum and mean, no atomics.

Shape legend: N tokens over all cells, C cells, D width; kernel tiles: T tokens of the cell, D columns.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cellfoundry_kernels.launch import Launch, LaunchOptions, argument_types
from cellfoundry_kernels.pooling import reference

TILES = {"BLOCK_T": 64, "BLOCK_D": 64}


@triton.jit
def forward_kernel(
    x_ptr,
    cu_seqlens_ptr,
    out_ptr,
    width,
    POOL_ALL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One program pools ``BLOCK_D`` columns of one cell."""
    cell = tl.program_id(0).to(tl.int64)
    column_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_column_D = column_D < width
    first = tl.load(cu_seqlens_ptr + cell).to(tl.int64)
    last = tl.load(cu_seqlens_ptr + cell + 1).to(tl.int64)
    length = (last - first).to(tl.int32)
    pooled_tokens = length - 2 if POOL_ALL else length

    maximum_D = tl.full([BLOCK_D], float("-inf"), tl.float32)
    sum_D = tl.zeros([BLOCK_D], tl.float32)
    nan_D = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, pooled_tokens, BLOCK_T):
        token_T = start + tl.arange(0, BLOCK_T)
        is_value_TD = (token_T < pooled_tokens)[:, None] & is_column_D[None, :]
        x_offset_TD = (first + token_T)[:, None] * width + column_D[None, :]
        x_TD = tl.load(x_ptr + x_offset_TD, mask=is_value_TD, other=0.0).to(tl.float32)
        sum_D += tl.sum(x_TD, 0)
        # A maximum on the device drops NaN; it must come out.
        nan_D = tl.maximum(nan_D, tl.max((x_TD != x_TD).to(tl.float32), 0))
        maximum_D = tl.maximum(maximum_D, tl.max(tl.where(is_value_TD, x_TD, float("-inf")), 0))
    maximum_D = tl.where((nan_D > 0) | (length <= 2), float("nan"), maximum_D)

    dtype = out_ptr.dtype.element_ty
    if POOL_ALL:
        is_read_D = is_column_D & (length > 2)
        s_D = tl.load(x_ptr + (last - 1) * width + column_D, mask=is_read_D, other=float("nan"))
        t_D = tl.load(x_ptr + (last - 2) * width + column_D, mask=is_read_D, other=float("nan"))
        mean_D = tl.where(length > 2, sum_D / tl.maximum(pooled_tokens, 1).to(tl.float32), float("nan"))
        out_D = out_ptr + cell * 4 * width + column_D
        tl.store(out_D, s_D.to(dtype), mask=is_column_D)
        tl.store(out_D + width, t_D.to(dtype), mask=is_column_D)
        tl.store(out_D + 2 * width, maximum_D.to(dtype), mask=is_column_D)
        tl.store(out_D + 3 * width, mean_D.to(dtype), mask=is_column_D)
    else:
        tl.store(out_ptr + cell * width + column_D, maximum_D.to(dtype), mask=is_column_D)


def options() -> LaunchOptions:
    """Launch options of the kernel."""
    return {"num_warps": 4, "num_stages": 2}


def forward(x_ND: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    """Launch the kernel over cells and blocks of columns."""
    cells, width = len(cu_seqlens) - 1, x_ND.shape[1]
    out = x_ND.new_empty(cells, width * (4 if mode == "all" else 1))
    if cells:
        grid = (cells, triton.cdiv(width, TILES["BLOCK_D"]))
        arguments = (x_ND.contiguous(), cu_seqlens.contiguous(), out, width)
        forward_kernel[grid](*arguments, POOL_ALL=mode == "all", **TILES, **options())
    return out


class _PoolCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
        ctx.save_for_backward(x_ND, cu_seqlens)
        ctx.mode = mode
        return forward(x_ND, cu_seqlens, mode)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, cu_seqlens = ctx.saved_tensors
        x_ND = x_ND.detach().requires_grad_()
        with torch.enable_grad():
            pooled = reference.pool_cells(x_ND, cu_seqlens, ctx.mode)
            return torch.autograd.grad(pooled, x_ND, grad)[0], None, None


def pool_cells(x_ND: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    """As ``cellfoundry_kernels.pooling``, for a known mode."""
    return _PoolCells.apply(x_ND, cu_seqlens, mode)


def published_launches() -> list[Launch]:
    """What runs for each mode in bf16."""
    found = []
    for mode in ("all", "max"):
        constants = {"POOL_ALL": mode == "all", **TILES}
        types = argument_types(forward_kernel, torch.bfloat16, constants, {"cu_seqlens_ptr": "*i32"})
        found.append(
            Launch(f"pool_cells-{mode}-bf16", forward_kernel, types, constants, options(), ("width",))
        )
    return found
