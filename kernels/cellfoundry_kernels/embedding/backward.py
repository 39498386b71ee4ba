"""Backward kernels of the value embedding in half precision; float32 takes backward_exact.py.

Shares are computed again, from the log-sum that forward kept. Two launches read the output's gradient once each.
``backward_bins_kernel`` needs whole rows of it, and keeps the gradient of mlp2 (64 KiB) in registers while it
walks over tokens. The table's gradient (bins x width: 300 KiB in float32) exceeds a processor's registers, so
``backward_table_kernel`` splits the width: a program owns ``BLOCK_D`` columns. Each program writes its sum over
its own tokens to a buffer of its own, and one sum over the buffers, always in the same order, ends it: no
atomics, the same bits in every run on a device.

Tiles stand on end here, bins x tokens: a bin's share of every token is then an operand as it is.

Shape legend: as in forward.py; S partial sums.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cellfoundry_kernels.embedding.forward import LOG2_E, PARTS, PARTS_K, own_row, processors, split_values
from cellfoundry_kernels.launch import LaunchOptions, capability_of, dot_precision


@triton.jit
def _parts(value_N, dtype: tl.constexpr):
    """What ``affine_BK`` multiplies: the parts of each scalar, and a 1."""
    part_K1 = tl.arange(0, PARTS_K)[:, None]
    high_N, middle_N, low_N = split_values(value_N, dtype)
    part_KN = tl.where(part_K1 == 3, 1.0, 0.0).to(dtype)
    part_KN = tl.where(part_K1 == 2, low_N[None, :], part_KN)
    part_KN = tl.where(part_K1 == 1, middle_N[None, :], part_KN)
    return tl.where(part_K1 == 0, high_N[None, :], part_KN)


@triton.jit
def _shares(part_KN, lse_N, affine_BK, mix_BI, alpha, PRECISION: tl.constexpr):
    """Activations in the weights' dtype, and shares of the bins, which are all 0 where ``lse`` is +inf."""
    hidden_IN = tl.dot(affine_BK, part_KN, input_precision=PRECISION)
    hidden_IN = tl.maximum(hidden_IN, 0.1 * hidden_IN)
    low_hidden_IN = hidden_IN.to(mix_BI.dtype)
    logits_BN = tl.dot(mix_BI, low_hidden_IN, alpha * hidden_IN, input_precision=PRECISION)
    return low_hidden_IN, tl.math.exp2(logits_BN * LOG2_E - lse_N[None, :])


@triton.jit
def backward_bins_kernel(
    value_ptr,
    lse_ptr,
    affine_ptr,
    mix_ptr,
    table_ptr,
    grad_out_ptr,
    grad_value_ptr,
    partial_ptr,
    alpha,
    tokens,
    rows,
    width,
    NEED_VALUE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One program's sum over tokens of the gradients of ``mix_BI`` and ``affine_BK``, side by side."""
    bin_B = tl.arange(0, BLOCK_B)
    part_1K = tl.arange(0, PARTS_K)[None, :]
    affine_BK = tl.load(affine_ptr + bin_B[:, None] * PARTS_K + part_1K)
    mix_BI = tl.load(mix_ptr + bin_B[:, None] * BLOCK_B + bin_B[None, :])
    dtype: tl.constexpr = table_ptr.dtype.element_ty
    grad_mix_BI = tl.zeros([BLOCK_B, BLOCK_B], tl.float32)
    grad_affine_IK = tl.zeros([BLOCK_B, PARTS_K], tl.float32)
    # Hoisted addresses of every product would fill the registers.
    for start in tl.range(
        tl.program_id(0) * BLOCK_N, tokens, tl.num_programs(0) * BLOCK_N, disable_licm=True
    ):
        token_N = start + tl.arange(0, BLOCK_N)
        is_token_N = token_N < tokens
        grad_share_BN = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
        for first in range(0, width, BLOCK_D):
            column_D = first + tl.arange(0, BLOCK_D)
            is_column_1D = (column_D < width)[None, :]
            table_BD = tl.load(
                table_ptr + bin_B[:, None] * width + column_D[None, :],
                mask=(bin_B < rows)[:, None] & is_column_1D,
                other=0.0,
            )
            grad_ND = tl.load(
                grad_out_ptr + token_N[:, None].to(tl.int64) * width + column_D[None, :],
                mask=is_token_N[:, None] & is_column_1D,
                other=0.0,
            )
            grad_share_BN = tl.dot(table_BD, tl.trans(grad_ND), grad_share_BN, input_precision=PRECISION)

        value_N = tl.load(value_ptr + token_N, mask=is_token_N, other=0.0).to(tl.float32)
        lse_N = tl.load(lse_ptr + token_N, mask=is_token_N, other=float("inf"))
        part_KN = _parts(value_N, dtype)
        hidden_IN, share_BN = _shares(part_KN, lse_N, affine_BK, mix_BI, alpha, PRECISION)
        grad_share_BN *= share_BN
        grad_logits_BN = grad_share_BN - share_BN * tl.sum(grad_share_BN, 0)[None, :]
        low_grad_logits_BN = grad_logits_BN.to(dtype)
        grad_mix_BI = tl.dot(low_grad_logits_BN, tl.trans(hidden_IN), grad_mix_BI, input_precision=PRECISION)
        grad_hidden_IN = tl.dot(
            tl.trans(mix_BI), low_grad_logits_BN, alpha * grad_logits_BN, input_precision=PRECISION
        )
        grad_hidden_IN = tl.where(hidden_IN > 0, grad_hidden_IN, 0.1 * grad_hidden_IN)
        grad_affine_IK = tl.dot(
            grad_hidden_IN.to(dtype), tl.trans(part_KN), grad_affine_IK, input_precision=PRECISION
        )
        if NEED_VALUE:
            weight_I = tl.load(affine_ptr + bin_B * PARTS_K).to(tl.float32)
            grad_value_N = tl.sum(grad_hidden_IN * weight_I[:, None], 0)
            tl.store(grad_value_ptr + token_N, grad_value_N, mask=is_token_N)

    columns: tl.constexpr = BLOCK_B + PARTS_K
    row_B1 = partial_ptr + (tl.program_id(0).to(tl.int64) * BLOCK_B + bin_B[:, None]) * columns
    tl.store(row_B1 + bin_B[None, :], grad_mix_BI)
    tl.store(row_B1 + BLOCK_B + part_1K, grad_affine_IK)


@triton.jit
def backward_table_kernel(
    value_ptr,
    lse_ptr,
    affine_ptr,
    mix_ptr,
    grad_out_ptr,
    partial_ptr,
    alpha,
    mask_token_id,
    pad_token_id,
    tokens,
    bins,
    rows,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One program's sum over tokens of ``BLOCK_D`` columns of the table's gradient."""
    bin_B = tl.arange(0, BLOCK_B)
    part_1K = tl.arange(0, PARTS_K)[None, :]
    # Programs that share tokens lie side by side, so that whole rows of the gradient are read at a time.
    column_D = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_column_1D = (column_D < width)[None, :]
    affine_BK = tl.load(affine_ptr + bin_B[:, None] * PARTS_K + part_1K)
    mix_BI = tl.load(mix_ptr + bin_B[:, None] * BLOCK_B + bin_B[None, :])
    dtype: tl.constexpr = grad_out_ptr.dtype.element_ty
    grad_table_BD = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for start in tl.range(
        tl.program_id(1) * BLOCK_N, tokens, tl.num_programs(1) * BLOCK_N, disable_licm=True
    ):
        token_N = start + tl.arange(0, BLOCK_N)
        is_token_N = token_N < tokens
        value_N = tl.load(value_ptr + token_N, mask=is_token_N, other=0.0).to(tl.float32)
        lse_N = tl.load(lse_ptr + token_N, mask=is_token_N, other=float("inf"))
        own_N = own_row(value_N, mask_token_id, pad_token_id, bins, rows)
        _, share_BN = _shares(_parts(value_N, dtype), lse_N, affine_BK, mix_BI, alpha, PRECISION)
        share_BN = tl.where(bin_B[:, None] == own_N[None, :], 1.0, share_BN)
        grad_ND = tl.load(
            grad_out_ptr + token_N[:, None].to(tl.int64) * width + column_D[None, :],
            mask=is_token_N[:, None] & is_column_1D,
            other=0.0,
        )
        grad_table_BD = tl.dot(share_BN.to(dtype), grad_ND, grad_table_BD, input_precision=PRECISION)
    offset_BD = (tl.program_id(1).to(tl.int64) * rows + bin_B[:, None]) * width + column_D[None, :]
    tl.store(partial_ptr + offset_BD, grad_table_BD, mask=(bin_B < rows)[:, None] & is_column_1D)


def bins_tiles(dtype: torch.dtype, block_b: int, capability: int) -> dict[str, Any]:
    """Tile sizes of ``backward_bins_kernel``; more tokens spill registers, on A100 a wider slice does too."""
    block_d = 64 if capability >= 90 else 32
    return {"BLOCK_N": 64, "BLOCK_B": block_b, "BLOCK_D": block_d, "PRECISION": dot_precision(dtype)}


def table_tiles(dtype: torch.dtype, block_b: int) -> dict[str, Any]:
    """Tile sizes of ``backward_table_kernel``: the wider the slice, the fewer times a share is computed."""
    return {"BLOCK_N": 64, "BLOCK_B": block_b, "BLOCK_D": 256, "PRECISION": dot_precision(dtype)}


BINS_OPTIONS: LaunchOptions = {"num_warps": 8, "num_stages": 4}
TABLE_OPTIONS: LaunchOptions = {"num_warps": 8, "num_stages": 3}


def backward_bins(
    grad_ND: Tensor,
    value_N: Tensor,
    lse_N: Tensor,
    affine_BK: Tensor,
    mix_BI: Tensor,
    table_RD: Tensor,
    alpha: float,
    need_value: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``mix_BI`` and ``affine_BK`` side by side, float32, and of the values (or nothing)."""
    tokens, (rows, width), block_b = len(value_N), table_RD.shape, len(mix_BI)
    blocks = bins_tiles(table_RD.dtype, block_b, capability_of(value_N.device))
    programs = min(processors(value_N.device), triton.cdiv(tokens, blocks["BLOCK_N"]))
    partial_SBC = lse_N.new_empty(programs, block_b, block_b + PARTS)
    grad_value_N = lse_N.new_empty(tokens if need_value else 0)
    if tokens:
        backward_bins_kernel[(programs,)](
            value_N.contiguous(),
            lse_N,
            affine_BK,
            mix_BI,
            table_RD.contiguous(),
            grad_ND.contiguous(),
            grad_value_N,
            partial_SBC,
            alpha,
            tokens,
            rows,
            width,
            NEED_VALUE=need_value,
            **blocks,
            **BINS_OPTIONS,
        )
    return partial_SBC.sum(0), grad_value_N


def backward_table(
    grad_ND: Tensor,
    value_N: Tensor,
    lse_N: Tensor,
    affine_BK: Tensor,
    mix_BI: Tensor,
    alpha: float,
    token_ids: tuple[float, float],
    bins: int,
    rows: int,
) -> Tensor:
    """Gradient of the table, (R, D)."""
    tokens, width = grad_ND.shape
    blocks = table_tiles(grad_ND.dtype, len(mix_BI))
    slices = triton.cdiv(width, blocks["BLOCK_D"])
    programs = min(
        max(processors(value_N.device) // max(slices, 1), 1), triton.cdiv(tokens, blocks["BLOCK_N"])
    )
    partial_SRD = lse_N.new_empty(programs, rows, width)
    if tokens and width:
        backward_table_kernel[(slices, programs)](
            value_N.contiguous(),
            lse_N,
            affine_BK,
            mix_BI,
            grad_ND.contiguous(),
            partial_SRD,
            alpha,
            *token_ids,
            tokens,
            bins,
            rows,
            width,
            **blocks,
            **TABLE_OPTIONS,
        )
    return partial_SRD.sum(0).to(grad_ND.dtype)
