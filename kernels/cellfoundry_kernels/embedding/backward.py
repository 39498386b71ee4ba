"""Backward of the value embedding in half precision, in two launches; float32 takes backward_exact.py.

``shares_kernel`` writes the shares of the bins, (N, 128) in half precision, to a buffer that lives for this call
only: 33 MB for 128,000 tokens, beside 197 MB of gradient at width 768. ``backward_kernel`` reads them and the
output's gradient. Its programs take one of two roles, side by side:

- the discretisation's gradients need whole rows of the gradient; a program keeps its sum for mlp2 (64 KiB in
  float32) in registers while it walks over tokens;
- the table's gradient (bins x width, 300 KiB in float32) exceeds a processor's registers, so a program owns
  ``TABLE_D`` columns (128 KiB on H100).

Why a buffer: without it the shares are computed anew for the first role and for each slice of the width, four times at
width 768, and with such sums in registers a processor holds one program, which hides no softmax behind products.
``shares_kernel`` runs three or four programs a processor. On an H200 (790 TFLOP/s, 4.3 TB/s) with the sizes above:

- buffer: 7.6 us to write, and 7.6 for each role that reads it from memory;
- shares, each time: 6 us of products, and 8 of exponentials and of what surrounds them (16 and 128 a cycle);
- products of ``backward_kernel``: 60 GFLOP, 76 us. Of memory it takes 54 us if one role finds what the other has read
  in the L2 cache (50 MB, so less than some 20,000 tokens apart; both go from the first token to the last at the same
  pace), 107 us if it never does.

Each program writes its sum over its own tokens to a buffer of its own, and one sum over the buffers, always in the
same order, ends it (22 MB, 5 us): no atomics, the same bits in every run on a device.

Shape legend: as in forward.py; C the columns of both packed layers' gradients, S partial sums.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cellfoundry_kernels.embedding.bins_gradient import bins_role
from cellfoundry_kernels.embedding.forward import (
    PARTS,
    PARTS_K,
    own_row,
    processors,
    shares,
)
from cellfoundry_kernels.launch import LaunchOptions, capability_of, dot_precision, has_large_tiles


@triton.jit
def shares_kernel(
    value_ptr,
    affine_ptr,
    mix_ptr,
    share_ptr,
    alpha,
    mask_token_id,
    pad_token_id,
    tokens,
    bins,
    rows,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write the shares of ``BLOCK_N`` tokens: what forward multiplies with the table."""
    bin_B = tl.arange(0, BLOCK_B)
    affine_BK = tl.load(affine_ptr + bin_B[:, None] * PARTS_K + tl.arange(0, PARTS_K)[None, :])
    mix_BI = tl.load(mix_ptr + bin_B[:, None] * BLOCK_B + bin_B[None, :])
    token_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_token_N = token_N < tokens
    value_N = tl.load(value_ptr + token_N, mask=is_token_N, other=0.0).to(tl.float32)
    own_N = own_row(value_N, mask_token_id, pad_token_id, bins, rows)
    share_NB = shares(value_N, own_N, affine_BK, mix_BI, alpha, BLOCK_B, PRECISION)
    offset_NB = token_N[:, None].to(tl.int64) * BLOCK_B + bin_B[None, :]
    tl.store(share_ptr + offset_NB, share_NB, mask=is_token_N[:, None])


@triton.jit
def _table_role(
    program,
    programs,
    share_ptr,
    grad_out_ptr,
    partial_ptr,
    tokens,
    rows,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program's sum over tokens of ``BLOCK_D`` columns of the table's gradient."""
    # Programs that share tokens lie side by side, so that whole rows of the gradient are read at a time.
    slices = tl.cdiv(width, BLOCK_D)
    part = program // slices
    bin_B = tl.arange(0, BLOCK_B)
    column_D = program % slices * BLOCK_D + tl.arange(0, BLOCK_D)
    is_column_1D = (column_D < width)[None, :]
    grad_table_BD = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for start in tl.range(part * BLOCK_N, tokens, programs // slices * BLOCK_N, disable_licm=True):
        token_N = start + tl.arange(0, BLOCK_N)
        is_token_N1 = (token_N < tokens)[:, None]
        row_N1 = token_N[:, None].to(tl.int64)
        share_NB = tl.load(share_ptr + row_N1 * BLOCK_B + bin_B[None, :], mask=is_token_N1, other=0.0)
        grad_ND = tl.load(
            grad_out_ptr + row_N1 * width + column_D[None, :], mask=is_token_N1 & is_column_1D, other=0.0
        )
        grad_table_BD = tl.dot(tl.trans(share_NB), grad_ND, grad_table_BD, input_precision=PRECISION)
    offset_BD = (part.to(tl.int64) * rows + bin_B[:, None]) * width + column_D[None, :]
    tl.store(partial_ptr + offset_BD, grad_table_BD, mask=(bin_B < rows)[:, None] & is_column_1D)


@triton.jit
def backward_kernel(
    value_ptr,
    share_ptr,
    affine_ptr,
    mix_ptr,
    table_ptr,
    grad_out_ptr,
    grad_value_ptr,
    partial_bins_ptr,
    partial_table_ptr,
    alpha,
    tokens,
    rows,
    width,
    bins_programs,
    NEED_VALUE: tl.constexpr,
    PAIRED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TABLE_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Sums over tokens, the first ``bins_programs`` of the discretisation's gradients, the others of the table's."""
    program = tl.program_id(0)
    if program < bins_programs:
        bins_role(
            program,
            bins_programs,
            value_ptr,
            share_ptr,
            affine_ptr,
            mix_ptr,
            table_ptr,
            grad_out_ptr,
            grad_value_ptr,
            partial_bins_ptr,
            alpha,
            tokens,
            rows,
            width,
            NEED_VALUE,
            PAIRED,
            BLOCK_N,
            BLOCK_B,
            BLOCK_D,
            PRECISION,
        )
    else:
        _table_role(
            program - bins_programs,
            tl.num_programs(0) - bins_programs,
            share_ptr,
            grad_out_ptr,
            partial_table_ptr,
            tokens,
            rows,
            width,
            BLOCK_N,
            BLOCK_B,
            TABLE_D,
            PRECISION,
        )


def shares_tiles(dtype: torch.dtype, block_b: int) -> dict[str, Any]:
    """Tile sizes of ``shares_kernel``: several small programs on a processor hide each other's softmax."""
    return {"BLOCK_N": 64, "BLOCK_B": block_b, "PRECISION": dot_precision(dtype)}


def backward_tiles(dtype: torch.dtype, block_b: int, capability: int, need_value: bool) -> dict[str, Any]:
    """Tile sizes of ``backward_kernel``: the largest that do not spill registers, where values need a gradient too."""
    large = has_large_tiles(capability)
    return {
        "NEED_VALUE": need_value,
        "PAIRED": large and not need_value,
        "BLOCK_N": 64 if large or not need_value else 32,
        "BLOCK_B": block_b,
        "BLOCK_D": 64 if large or need_value else 32,
        "TABLE_D": 256 if large else 128,
        "PRECISION": dot_precision(dtype),
    }


def backward_options(capability: int) -> LaunchOptions:
    """Options of ``backward_kernel``."""
    return {"num_warps": 8, "num_stages": 3 if has_large_tiles(capability) else 2}


SHARES_OPTIONS: LaunchOptions = {"num_warps": 4, "num_stages": 1}


def programs_of(tokens: int, width: int, blocks: dict[str, Any], device: torch.device) -> tuple[int, int]:
    """Programs of the first role, and of the second for each slice of the width.

    All run side by side. The table's gradient is 3 products in 7; the other role's wait for each other more, so it
    gets 5 processors in 8.
    """
    tiles = triton.cdiv(tokens, blocks["BLOCK_N"])
    bins_tiles = triton.cdiv(tiles, 2) if blocks["PAIRED"] else tiles
    slices = triton.cdiv(width, blocks["TABLE_D"])
    table_programs = min(max(3 * processors(device) // (8 * slices), 1), tiles)
    return min(max(processors(device) - slices * table_programs, 1), bins_tiles), table_programs


def backward(
    grad_ND: Tensor,
    value_N: Tensor,
    affine_BK: Tensor,
    mix_BI: Tensor,
    table_RD: Tensor,
    alpha: float,
    token_ids: tuple[float, float],
    bins: int,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``mix_BI`` and ``affine_BK`` side by side, of the table, and of the values (or nothing), float32."""
    tokens, (rows, width), block_b = len(value_N), table_RD.shape, len(mix_BI)
    if not tokens or not width:
        shapes = ((block_b, block_b + PARTS), (rows, width), (tokens if need_value else 0,))
        grad_BC, grad_RD, grad_value_N = (table_RD.new_zeros(x, dtype=torch.float32) for x in shapes)
        return grad_BC, grad_RD, grad_value_N
    value_N, grad_ND = value_N.contiguous(), grad_ND.contiguous()
    share_NB = table_RD.new_empty(tokens, block_b)
    blocks = shares_tiles(table_RD.dtype, block_b)
    shares_kernel[(triton.cdiv(tokens, blocks["BLOCK_N"]),)](
        value_N,
        affine_BK,
        mix_BI,
        share_NB,
        alpha,
        *token_ids,
        tokens,
        bins,
        rows,
        **blocks,
        **SHARES_OPTIONS,
    )
    capability = capability_of(value_N.device)
    blocks = backward_tiles(table_RD.dtype, block_b, capability, need_value)
    bins_programs, table_programs = programs_of(tokens, width, blocks, value_N.device)
    slices = triton.cdiv(width, blocks["TABLE_D"])
    partial_SBC = table_RD.new_empty(bins_programs, block_b, block_b + PARTS, dtype=torch.float32)
    partial_SRD = table_RD.new_empty(table_programs, rows, width, dtype=torch.float32)
    grad_value_N = table_RD.new_empty(tokens if need_value else 0, dtype=torch.float32)
    backward_kernel[(bins_programs + slices * table_programs,)](
        value_N,
        share_NB,
        affine_BK,
        mix_BI,
        table_RD.contiguous(),
        grad_ND,
        grad_value_N,
        partial_SBC,
        partial_SRD,
        alpha,
        tokens,
        rows,
        width,
        bins_programs,
        **blocks,
        **backward_options(capability),
    )
    return partial_SBC.sum(0), partial_SRD.sum(0), grad_value_N
