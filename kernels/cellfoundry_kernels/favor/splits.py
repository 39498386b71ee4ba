"""How programs share the positions of a (cell, head), and how the sums of those that sum come together.

Shape legend: see ``blocks``; D some columns of the head dim.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from cellfoundry_kernels.favor.blocks import sums_as_column


@triton.jit
def take_split(heads, positions, split_positions, cell_splits):
    """What a program owns: its (cell, head) as one number, both of them, and its first position and the end."""
    group = (tl.program_id(0) // cell_splits).to(tl.int64)
    cell, head = group // heads, group % heads
    first = (tl.program_id(0) % cell_splits) * split_positions
    last = tl.minimum(first + split_positions, positions)
    return group, cell, head, first, last


@triton.jit
def store_sums(
    sums_ptr, column_ptr, sums, column, tail_KM, tail_NM, tail_M, FULL: tl.constexpr, BLOCK_M: tl.constexpr,
    PADDED_M: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """A program's sums of rows, and of numbers, by feature: blocks as ``add_weighted`` left them, then the tail.

    The tail's features are ``tail_M``; its numbers are not yet summed over positions.
    """
    program = tl.program_id(0).to(tl.int64)
    sums_ptr += program * PADDED_M * CHANNELS
    column_ptr += program * PADDED_M
    column_K = tl.arange(0, BLOCK_K)
    is_column_K = column_K < CHANNELS
    tl.store(sums_ptr + (column_K[:, None] + tail_M[None, :] * CHANNELS), tail_KM, mask=is_column_K[:, None])
    tl.store(column_ptr + tail_M, tl.sum(tail_NM, 0))
    for block in tl.static_range(FULL):
        feature_M = block * BLOCK_M + tl.arange(0, BLOCK_M)
        offset_MK = feature_M[:, None] * CHANNELS + column_K[None, :]
        tl.store(sums_ptr + offset_MK, sums[block], mask=is_column_K[None, :])
        tl.store(column_ptr + feature_M, sums_as_column(column[block], PRECISION))


@triton.jit
def add_splits(
    sums_ptr, column_ptr, group, cell_splits, feature_M, column_D, FEATURES: tl.constexpr, CHANNELS: tl.constexpr,
    PADDED_M: tl.constexpr,
):  # fmt: skip
    """What ``store_sums`` stored for one (cell, head), added in the order of the splits, for some columns.

    Sums (M, D) and numbers (M,) of the features, then (D,) and one number of the constant feature behind them.
    """
    is_feature_M, is_column_D = feature_M < FEATURES, column_D < CHANNELS
    offset_MD = feature_M[:, None] * CHANNELS + column_D[None, :]
    is_value_MD = is_feature_M[:, None] & is_column_D[None, :]
    sum_MD = tl.zeros([feature_M.shape[0], column_D.shape[0]], tl.float32)
    number_M = tl.zeros([feature_M.shape[0]], tl.float32)
    constant_D = tl.zeros([column_D.shape[0]], tl.float32)
    constant_number = tl.zeros([], tl.float32)
    for split in range(cell_splits):
        program = group * cell_splits + split
        sum_MD += tl.load(sums_ptr + program * PADDED_M * CHANNELS + offset_MD, mask=is_value_MD, other=0.0)
        number_M += tl.load(column_ptr + program * PADDED_M + feature_M, mask=is_feature_M, other=0.0)
        constant = program * PADDED_M + FEATURES
        constant_D += tl.load(sums_ptr + constant * CHANNELS + column_D, mask=is_column_D, other=0.0)
        constant_number += tl.load(column_ptr + constant)
    return sum_MD, number_M, constant_D, constant_number
