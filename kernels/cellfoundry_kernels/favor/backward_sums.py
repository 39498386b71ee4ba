"""Backward kernels of FAVOR+ that sum over queries what the keys' gradients need, and the table those sums make.

With the names of ``backward_queries``: ``X = sum share g`` and ``x = -sum share d`` over queries, epsilon's part
added, are B times the gradients of the sums over keys (see ``backward_keys``).

Shape legend: see ``blocks``.
"""

# Arguments of a kernel have no Python type, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from cellfoundry_kernels.favor.blocks import (
    add_weighted,
    add_weighted_columns,
    as_columns,
    as_operand,
    as_summand,
    load_features,
    load_full_blocks,
    load_rows,
    power_of_two,
    zero_block_sums,
    zero_blocks,
)
from cellfoundry_kernels.favor.splits import add_splits, store_sums, take_split


@triton.jit
def gradient_sums_kernel(
    q_ptr,
    grad_out_ptr,
    rows_ptr,
    delta_ptr,
    projection_ptr,
    sums_ptr,
    slopes_ptr,
    scale,
    q_cell,
    q_head,
    q_row,
    grad_cell,
    grad_head,
    grad_row,
    heads,
    positions,
    split_positions,
    cell_splits,
    FEATURES: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TAIL_M: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PADDED_M: tl.constexpr,
    PRECISION: tl.constexpr,
    DISABLE_LICM: tl.constexpr,
) -> None:
    """Sums of ``g`` and ``d`` over one split of one head's queries, by feature.

    A feature's exponentials are over the denominator, and so is the constant feature's 1. In float32 a program has
    one block of the features, the tail, instead of all.
    """
    group, cell, head, first, last = take_split(heads, positions, split_positions, cell_splits)
    q_ptr += cell * q_cell + head * q_head
    grad_out_ptr += cell * grad_cell + head * grad_head
    rows_ptr += group * positions * 3
    delta_ptr += group * positions
    projection = load_full_blocks(projection_ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K)
    feature_M = FULL * BLOCK_M + tl.program_id(1) * TAIL_M + tl.arange(0, TAIL_M)
    tail_MK = load_features(projection_ptr, feature_M, FEATURES, CHANNELS, BLOCK_K)
    sums = zero_blocks(FULL, BLOCK_M, BLOCK_K)
    slopes = zero_block_sums(FULL, BLOCK_M, PRECISION)
    sum_KM = tl.zeros([BLOCK_K, TAIL_M], tl.float32)
    slope_NM = tl.zeros([BLOCK_N, TAIL_M], tl.float32)
    is_constant_M = feature_M == FEATURES
    for start in tl.range(first, last, BLOCK_N, disable_licm=DISABLE_LICM):
        row_N = tl.minimum(tl.arange(0, BLOCK_N), last - 1 - start)
        is_query_N = start + tl.arange(0, BLOCK_N) < last
        q_NK = as_operand(load_rows(q_ptr, start, row_N, q_row, BLOCK_K, CHANNELS), tail_MK)
        grad_NK = load_rows(grad_out_ptr, start, row_N, grad_row, BLOCK_K, CHANNELS)
        rows = rows_ptr + 3 * (start + tl.arange(0, BLOCK_N))
        log_total_N = tl.load(rows, mask=is_query_N, other=float("inf"))
        inverse_N = tl.load(rows + 1, mask=is_query_N, other=0.0)
        delta_N = tl.load(delta_ptr + start + tl.arange(0, BLOCK_N), mask=is_query_N, other=0.0)
        grad_NK = as_summand(grad_NK)
        delta = as_columns(delta_N, grad_NK, PRECISION)
        new_sums, new_slopes = (), ()
        for block in tl.static_range(FULL):
            logits_MN = tl.dot(projection[block], tl.trans(q_NK))
            share_MN = tl.math.exp2(logits_MN * scale - log_total_N[None, :])
            sum_MK, slope = add_weighted(sums[block], slopes[block], share_MN, grad_NK, delta)
            new_sums += (sum_MK,)
            new_slopes += (slope,)
        sums, slopes = new_sums, new_slopes
        logits_NM = tl.dot(q_NK, tl.trans(tail_MK), input_precision=PRECISION)
        share_NM = tl.math.exp2(logits_NM * scale - log_total_N[:, None])
        share_NM = tl.where(is_constant_M[None, :], inverse_N[:, None], share_NM)
        sum_KM = add_weighted_columns(sum_KM, share_NM, grad_NK, PRECISION)
        slope_NM += share_NM * delta_N[:, None]

    store_sums(
        sums_ptr, slopes_ptr, sums, slopes, sum_KM, slope_NM, feature_M, FULL, BLOCK_M, PADDED_M, CHANNELS, BLOCK_K,
        PRECISION,
    )  # fmt: skip


@triton.jit
def gradient_context_kernel(
    sums_ptr,
    slopes_ptr,
    log_mass_ptr,
    scalars_ptr,
    table_ptr,
    offset_ptr,
    columns_ptr,
    largest_ptr,
    epsilon,
    cell_splits,
    FEATURES: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """A head's splits become the table X (over a power of two a column) and the offset x, as ``context_kernel``.

    ``columns`` are those powers and ``eps sum X / B``; ``largest`` is the largest ``|x|``.
    """
    group = tl.program_id(0).to(tl.int64)
    feature_M = tl.arange(0, BLOCK_M)
    column_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_feature_M, is_column_D = feature_M < FEATURES, column_D < CHANNELS
    is_value_MD = is_feature_M[:, None] & is_column_D[None, :]
    offset_MD = feature_M[:, None] * CHANNELS + column_D[None, :]

    sum_MD, slope_M, value_D, total = add_splits(
        sums_ptr, slopes_ptr, group, cell_splits, feature_M, column_D, FEATURES, CHANNELS, PADDED_M
    )
    log_mass_M = tl.load(log_mass_ptr + group * FEATURES + feature_M, mask=is_feature_M, other=0.0)
    mass_M = tl.where(is_feature_M, tl.math.exp2(log_mass_M), 0.0)
    grad_MD = tl.where(is_value_MD, sum_MD + epsilon * value_D[None, :], 0.0)
    table_MD = grad_MD * mass_M[:, None]
    scale_D = power_of_two(tl.max(tl.abs(table_MD), 0))
    largest_mass = tl.math.exp2(tl.load(scalars_ptr + group * 4 + 1))
    epsilon_D = epsilon * tl.sum(grad_MD, 0) / largest_mass
    table_MD = table_MD / scale_D[None, :]
    table_ptr += group * FEATURES * CHANNELS
    tl.store(table_ptr + offset_MD, table_MD.to(table_ptr.dtype.element_ty), mask=is_value_MD)
    tl.store(columns_ptr + group * 2 * CHANNELS + column_D, scale_D, mask=is_column_D)
    tl.store(columns_ptr + group * 2 * CHANNELS + CHANNELS + column_D, epsilon_D, mask=is_column_D)
    if tl.program_id(1) == 0:
        offset_M = -mass_M * (slope_M + epsilon * total)
        tl.store(offset_ptr + group * FEATURES + feature_M, offset_M, mask=is_feature_M)
        tl.store(largest_ptr + group, tl.max(tl.abs(offset_M), 0))
