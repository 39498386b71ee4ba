"""Forward kernel of the value embedding: the shares of the bins stay on the processor.

The two layers of the discretisation arrive as two padded matrices (``pack_kernel``), which needs a spare column:
the bin after the last one is always 1.

- ``affine_BK``: columns w, w, w, b, zeros. A scalar enters as three parts of the weights' dtype (24 bits of
  bf16, more of fp16) and a 1, so a product of depth 16 gives ``w v + b`` with a scalar's full digits, and in the
  registers' order that the next product wants: the same vectors kept in registers spilled.
- ``mix_BI``: mlp2's weight, its bias in the spare column, and there a hugely negative number for bins
  that do not exist, which makes their share 0 (-inf would turn their gradients into NaN).

Shape legend: N tokens, B bins (and the mask and pad rows), I input bins of mlp2, D width, K parts of a scalar,
R rows of the table (bins, or bins + 2); kernel tiles carry the same letters.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cellfoundry_kernels.launch import (
    LaunchOptions,
    capability_of,
    dot_precision,
    has_large_tiles,
    tile,
)

LOG2_E = tl.constexpr(math.log2(math.e))
PARTS = 16  # the smallest depth of a product
PARTS_K = tl.constexpr(PARTS)


@triton.jit
def pack_kernel(
    mlp_weight_ptr,
    mlp_bias_ptr,
    mlp2_weight_ptr,
    mlp2_bias_ptr,
    affine_ptr,
    mix_ptr,
    lowest,
    bins,
    BLOCK_B: tl.constexpr,
) -> None:
    """Write 16 rows of ``affine_BK`` and ``mix_BI``."""
    bin_B = tl.program_id(0) * 16 + tl.arange(0, 16)
    bin_I = tl.arange(0, BLOCK_B)
    part_K = tl.arange(0, PARTS_K)
    is_bin_B = bin_B < bins
    weight_B = tl.load(mlp_weight_ptr + bin_B, mask=is_bin_B, other=0.0)
    bias_B = tl.load(mlp_bias_ptr + bin_B, mask=is_bin_B, other=1.0)
    affine_BK = tl.where((part_K < 3)[None, :], weight_B[:, None], 0.0)
    affine_BK = tl.where((part_K == 3)[None, :], bias_B[:, None], affine_BK)
    tl.store(affine_ptr + bin_B[:, None] * PARTS_K + part_K[None, :], affine_BK)
    mlp2_bias_B = tl.load(mlp2_bias_ptr + bin_B, mask=is_bin_B, other=lowest)
    mix_BI = tl.load(
        mlp2_weight_ptr + bin_B[:, None] * bins + bin_I[None, :],
        mask=is_bin_B[:, None] & (bin_I < bins)[None, :],
        other=0.0,
    )
    mix_BI = tl.where((bin_I == bins)[None, :], mlp2_bias_B[:, None], mix_BI)
    tl.store(mix_ptr + bin_B[:, None] * BLOCK_B + bin_I[None, :], mix_BI)


@triton.jit
def split_values(value_N, dtype: tl.constexpr):
    """The scalars in three parts that add up to them."""
    high_N = value_N.to(dtype)
    rest_N = value_N - high_N.to(tl.float32)
    middle_N = rest_N.to(dtype)
    low_N = (rest_N - middle_N.to(tl.float32)).to(dtype)
    return high_N, middle_N, low_N


@triton.jit
def own_row(value_N, mask_token_id, pad_token_id, bins, rows):
    """Row of the table that a mask or pad value takes, -1 for every other value."""
    row_N = tl.where(value_N == mask_token_id, bins, -1)
    row_N = tl.where(value_N == pad_token_id, bins + 1, row_N)
    return tl.where(rows > bins, row_N, -1)


@triton.jit
def parts(value_N, dtype: tl.constexpr):
    """What ``affine_BK`` multiplies: the three parts of each scalar, and a 1."""
    part_1K = tl.arange(0, PARTS_K)[None, :]
    high_N, middle_N, low_N = split_values(value_N, dtype)
    part_NK = tl.where(part_1K == 3, 1.0, 0.0).to(dtype)
    part_NK = tl.where(part_1K == 2, low_N[:, None], part_NK)
    part_NK = tl.where(part_1K == 1, middle_N[:, None], part_NK)
    return tl.where(part_1K == 0, high_N[:, None], part_NK)


@triton.jit
def shares(value_N, own_N, affine_BK, mix_BI, alpha, BLOCK_B: tl.constexpr, PRECISION: tl.constexpr):
    """Shares of the bins in the weights' dtype; all of it is the row of its own where a value has one."""
    part_NK = parts(value_N, mix_BI.dtype)
    hidden_NI = tl.dot(part_NK, tl.trans(affine_BK), input_precision=PRECISION)
    hidden_NI = tl.maximum(hidden_NI, 0.1 * hidden_NI)
    # The skip connection is where the sum over input bins starts.
    logits_NB = tl.dot(
        hidden_NI.to(mix_BI.dtype), tl.trans(mix_BI), alpha * hidden_NI, input_precision=PRECISION
    )
    share_NB = tl.math.exp2((logits_NB - tl.max(logits_NB, 1)[:, None]) * LOG2_E)
    share_NB = share_NB * tl.where(own_N < 0, 1 / tl.sum(share_NB, 1), 0.0)[:, None]
    bin_1B = tl.arange(0, BLOCK_B)[None, :]
    return tl.where(bin_1B == own_N[:, None], 1.0, share_NB).to(mix_BI.dtype)


@triton.jit
def forward_kernel(
    value_ptr,
    affine_ptr,
    mix_ptr,
    table_ptr,
    position_table_ptr,
    position_ptr,
    out_ptr,
    alpha,
    mask_token_id,
    pad_token_id,
    tokens,
    bins,
    rows,
    width,
    positions,
    HAS_POSITION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Embed ``BLOCK_N`` scalars at a time, ``BLOCK_D`` columns of the width at a time."""
    bin_B = tl.arange(0, BLOCK_B)
    part_1K = tl.arange(0, PARTS_K)[None, :]
    affine_BK = tl.load(affine_ptr + bin_B[:, None] * PARTS_K + part_1K)
    mix_BI = tl.load(mix_ptr + bin_B[:, None] * BLOCK_B + bin_B[None, :])
    # Hoisted addresses of every product would fill the registers.
    for start in tl.range(
        tl.program_id(0) * BLOCK_N, tokens, tl.num_programs(0) * BLOCK_N, disable_licm=True
    ):
        token_N = start + tl.arange(0, BLOCK_N)
        is_token_N = token_N < tokens
        value_N = tl.load(value_ptr + token_N, mask=is_token_N, other=0.0).to(tl.float32)
        own_N = own_row(value_N, mask_token_id, pad_token_id, bins, rows)
        share_NB = shares(value_N, own_N, affine_BK, mix_BI, alpha, BLOCK_B, PRECISION)
        if HAS_POSITION:
            position_N = tl.load(position_ptr + token_N, mask=is_token_N, other=0)
            is_position_N = is_token_N & (position_N >= 0) & (position_N < positions)
        for first in tl.range(0, width, BLOCK_D, num_stages=STAGES):
            column_D = first + tl.arange(0, BLOCK_D)
            is_column_1D = (column_D < width)[None, :]
            table_BD = tl.load(
                table_ptr + bin_B[:, None] * width + column_D[None, :],
                mask=(bin_B < rows)[:, None] & is_column_1D,
                other=0.0,
            )
            out_ND = tl.dot(share_NB, table_BD, input_precision=PRECISION)
            if HAS_POSITION:
                # A position that does not exist gives NaN, not somebody else's memory.
                out_ND += tl.load(
                    position_table_ptr + position_N[:, None].to(tl.int64) * width + column_D[None, :],
                    mask=is_position_N[:, None] & is_column_1D,
                    other=float("nan"),
                ).to(tl.float32)
            # 64 bit: tokens x width passes 2^31.
            tl.store(
                out_ptr + token_N[:, None].to(tl.int64) * width + column_D[None, :],
                out_ND.to(out_ptr.dtype.element_ty),
                mask=is_token_N[:, None] & is_column_1D,
            )


def block_of_bins(bins: int, rows: int) -> int:
    """Side of the bins' tiles: holds every row of the table, and one bin to spare."""
    return tile(max(bins + 1, rows))


@functools.cache
def processors(device: torch.device) -> int:
    """Programs that a device runs side by side; the interpreter's number gives both roles of backward several."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 6


def forward_tiles(dtype: torch.dtype, block_b: int, capability: int) -> dict[str, Any]:
    """Tile sizes: more tokens read the table less often, until registers spill (earlier before H100).

    Float32 products run on the plain cores and need smaller ones.
    """
    if dtype == torch.float32:
        tokens, columns, stages = 16, 16, 2
    else:
        tokens, columns, stages = (128, 64, 3) if has_large_tiles(capability) else (64, 32, 3)
    return {
        "BLOCK_N": tokens,
        "BLOCK_B": block_b,
        "BLOCK_D": columns,
        "STAGES": stages,
        "PRECISION": dot_precision(dtype),
    }


def forward_options(dtype: torch.dtype, capability: int) -> LaunchOptions:
    """Options of ``forward_kernel``; in float32 triton 3.9 spills registers of fewer warps on H100."""
    return {"num_warps": 16 if dtype == torch.float32 and has_large_tiles(capability) else 8, "num_stages": 3}


PACK_OPTIONS: LaunchOptions = {"num_warps": 4, "num_stages": 1}


def pack(
    mlp_weight_B1: Tensor, mlp_bias_B: Tensor, mlp2_weight_BB: Tensor, mlp2_bias_B: Tensor, block_b: int
) -> tuple[Tensor, Tensor]:
    """``affine_BK`` (block, 16) and ``mix_BI`` (block, block) of the module's docstring."""
    affine_BK = mlp2_weight_BB.new_empty(block_b, PARTS)
    mix_BI = mlp2_weight_BB.new_empty(block_b, block_b)
    weights = (mlp_weight_B1, mlp_bias_B, mlp2_weight_BB, mlp2_bias_B)
    pack_kernel[(block_b // 16,)](
        *(x.contiguous() for x in weights),
        affine_BK,
        mix_BI,
        torch.finfo(mix_BI.dtype).min / 2,
        len(mlp_bias_B),
        BLOCK_B=block_b,
        **PACK_OPTIONS,
    )
    return affine_BK, mix_BI


def forward(
    value_N: Tensor,
    affine_BK: Tensor,
    mix_BI: Tensor,
    table_RD: Tensor,
    position_table_PD: Tensor | None,
    position_N: Tensor | None,
    alpha: float,
    token_ids: tuple[float, float],
    bins: int,
) -> Tensor:
    """Embeddings, (N, D)."""
    tokens, (rows, width) = len(value_N), table_RD.shape
    out_ND = table_RD.new_empty(tokens, width)
    capability = capability_of(value_N.device)
    blocks = forward_tiles(table_RD.dtype, len(mix_BI), capability)
    has_position = position_table_PD is not None and position_N is not None
    if tokens and width:
        forward_kernel[(min(processors(value_N.device), triton.cdiv(tokens, blocks["BLOCK_N"])),)](
            value_N.contiguous(),
            affine_BK,
            mix_BI,
            table_RD.contiguous(),
            position_table_PD.contiguous() if position_table_PD is not None else table_RD,
            position_N.contiguous() if position_N is not None else value_N,
            out_ND,
            alpha,
            *token_ids,
            tokens,
            bins,
            rows,
            width,
            len(position_table_PD) if position_table_PD is not None else 0,
            HAS_POSITION=has_position,
            **blocks,
            **forward_options(table_RD.dtype, capability),
        )
    return out_ND
