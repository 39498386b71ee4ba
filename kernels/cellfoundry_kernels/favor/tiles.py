"""What the kernels of FAVOR+ share: feature blocks, tiles of rows, operands of the tensor cores, and splits.

Features are cut into ``FULL`` blocks of ``BLOCK_M`` and one of ``TAIL_M``, held as a tuple of tiles: 266 features are
4 x 64 + 16 or 2 x 128 + 16, where one power of two would be 512.

Shape legend: C cells, H heads, P key positions, Q query positions, K head dim, M features; kernel tiles: N
positions, M features of a block, K head dim. A name without a suffix for M holds one tile a block.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cellfoundry_kernels.launch import dot_precision, tile

LOG2_E = math.log2(math.e)
# Programs of a launch: about four rounds of two programs on each of 132 multiprocessors.
PROGRAMS = 1024
# Fewer positions than this are not worth a program of their own: it loads 70 KB of operands first.
LEAST_POSITIONS = 512
# Features x head dim, both padded, that fit a multiprocessor's registers and shared memory.
LARGEST_PROJECTION = 18_432


@triton.jit
def load_rows(ptr, start, row_N, stride, BLOCK_K: tl.constexpr, CHANNELS: tl.constexpr):
    """Rows ``start + row_N`` as (N, K), zeros past the head dim."""
    column_K = tl.arange(0, BLOCK_K)
    rows = ptr + tl.cast(start, tl.int64) * stride + (row_N[:, None] * stride + column_K[None, :])
    if BLOCK_K == CHANNELS:
        return tl.load(rows)
    return tl.load(rows, mask=(column_K < CHANNELS)[None, :], other=0.0)


@triton.jit
def store_rows(
    ptr, rows_NK, start, row_N, is_row_N, stride, BLOCK_K: tl.constexpr, CHANNELS: tl.constexpr
) -> None:
    """The counterpart of ``load_rows``, for the rows of ``is_row_N``."""
    column_K = tl.arange(0, BLOCK_K)
    rows = ptr + tl.cast(start, tl.int64) * stride + (row_N[:, None] * stride + column_K[None, :])
    tl.store(rows, rows_NK.to(ptr.dtype.element_ty), mask=is_row_N[:, None] & (column_K < CHANNELS)[None, :])


@triton.jit
def load_column(ptr, BLOCK_K: tl.constexpr, CHANNELS: tl.constexpr):
    """One number a channel, zeros past the head dim."""
    column_K = tl.arange(0, BLOCK_K)
    return tl.load(ptr + column_K, mask=column_K < CHANNELS, other=0.0)


@triton.jit
def block_features(block: tl.constexpr, FULL: tl.constexpr, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr):
    """Feature numbers of one block."""
    size: tl.constexpr = BLOCK_M if block < FULL else TAIL_M
    return block * BLOCK_M + tl.arange(0, size)


@triton.jit
def load_blocks(
    ptr, FEATURES: tl.constexpr, FULL: tl.constexpr, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A (features, channels) matrix as a tuple of (M, K) tiles, zeros past its end."""
    tiles = ()
    column_K = tl.arange(0, BLOCK_K)
    for block in tl.static_range(FULL + 1):
        feature_M = block_features(block, FULL, BLOCK_M, TAIL_M)
        mask_MK = (feature_M < FEATURES)[:, None] & (column_K < CHANNELS)[None, :]
        offset_MK = feature_M[:, None] * CHANNELS + column_K[None, :]
        tiles += (tl.load(ptr + offset_MK, mask=mask_MK, other=0.0),)
    return tiles


@triton.jit
def full_blocks(value, FULL: tl.constexpr, BLOCK_M: tl.constexpr, COLUMNS: tl.constexpr):
    """A tuple of (BLOCK_M, COLUMNS) tiles of one value, or (BLOCK_M,) without columns; the tail has none."""
    tiles = ()
    for _block in tl.static_range(FULL):
        if COLUMNS == 0:
            tiles += (tl.full([BLOCK_M], value, tl.float32),)
        else:
            tiles += (tl.full([BLOCK_M, COLUMNS], value, tl.float32),)
    return tiles


@triton.jit
def as_operand(rows_NK, like):
    """Rows as an operand beside ``like``: bf16 becomes fp16, which keeps its every bit; fp16 may become float32.

    Past fp16's range rows are clamped: a query or key as long as that has exponentials of zero anyway. NaN stays.
    """
    if rows_NK.dtype == tl.bfloat16:
        rows_NK = rows_NK.to(tl.float32)
        rows_NK = tl.minimum(rows_NK, 65504.0, propagate_nan=tl.PropagateNan.ALL)
        rows_NK = tl.maximum(rows_NK, -65504.0, propagate_nan=tl.PropagateNan.ALL)
    return rows_NK.to(like.dtype)


@triton.jit
def as_summand(rows_NK):
    """Rows whose weighted sum is wanted, as an operand: bf16 stays, for its range, all else is float32."""
    if rows_NK.dtype != tl.bfloat16:
        rows_NK = rows_NK.to(tl.float32)
    return rows_NK


@triton.jit
def half_norm(rows_NK, half):
    """``half |row|^2``, (N,) float32."""
    rows_NK = rows_NK.to(tl.float32)
    return tl.sum(rows_NK * rows_NK, 1) * half


@triton.jit
def power_of_two(x):
    """The largest power of two up to each x, 1 for 0: dividing by it loses no bit."""
    power = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.where(power > 0, power, 1.0)


def feature_blocks(features: int, block_m: int) -> dict[str, int]:
    """The blocks of a number of features as ``constexpr`` arguments; the tail has room for one feature more."""
    full = features // block_m
    return {"FULL": full, "BLOCK_M": block_m, "TAIL_M": tile(features - full * block_m + 1)}


def padded_features(features: int, block_m: int) -> int:
    """Features of all blocks."""
    blocks = feature_blocks(features, block_m)
    return blocks["FULL"] * block_m + blocks["TAIL_M"]


def fits(features: int, head_dim: int) -> bool:
    """Whether the kernels run a projection of this size; larger ones take the reference."""
    return padded_features(features, 128) * tile(head_dim) <= LARGEST_PROJECTION


def constants(
    features: int, head_dim: int, dtype: torch.dtype, block_n: int, block_m: int
) -> dict[str, Any]:
    """``constexpr`` arguments of every kernel over positions."""
    return {
        "FEATURES": features,
        **feature_blocks(features, block_m),
        "CHANNELS": head_dim,
        "BLOCK_K": tile(head_dim),
        "BLOCK_N": block_n,
        "PRECISION": dot_precision(dtype),
    }


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of matrix operands made inside: what is rounded must be finer than the inputs.

    float16 for bfloat16 inputs: shares in [0, 1] and rows over a power of two need its bits, not bfloat16's range.
    """
    return torch.float16 if dtype == torch.bfloat16 else torch.float32


def splits(groups: int, positions: int, block_n: int) -> tuple[int, int]:
    """Into how many programs each (cell, head) is split, and the positions of each: a multiple of the tile.

    Enough to fill the processor with one cell; with many cells few, so that partial sums (70 KB each at 266
    features) stay below about 75 MB or one a (cell, head).
    """
    wanted = max(1, min(PROGRAMS // max(groups, 1), positions // LEAST_POSITIONS))
    length = triton.cdiv(triton.cdiv(positions, wanted), block_n) * block_n
    return triton.cdiv(positions, length), length


def row_strides(x_CHPK: Tensor) -> tuple[int, int, int]:
    """Strides of cells, heads and positions."""
    return x_CHPK.stride()[:3]


def with_dense_rows(x_CHPK: Tensor) -> Tensor:
    """The tensor where each row lies dense, as in views of a packed projection; else a copy."""
    return x_CHPK if x_CHPK.stride(3) == 1 else x_CHPK.contiguous()


def empty_heads_inside(x_CHPK: Tensor) -> Tensor:
    """Memory shaped like ``x_CHPK``, a position's heads side by side: merging the heads again copies nothing."""
    cells, heads, positions, channels = x_CHPK.shape
    return x_CHPK.new_empty(cells, positions, heads, channels).transpose(1, 2)
