"""Backward kernel of FAVOR+ over keys: dK and dV, from what ``backward_sums`` summed.

A key's logits have the gradient ``w E / B ((v - o) . X + x)``, its value has ``w sum (E + eps) / B X``.

Shape legend: see ``blocks``.
"""

# Arguments of a kernel have no Python type, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from cellfoundry_kernels.favor.backward_queries import LOG2_GAIN, ROOM
from cellfoundry_kernels.favor.blocks import (
    add_outer,
    add_products,
    as_operand,
    block_features,
    exact_products,
    half_norm,
    load_block_columns,
    load_blocks,
    load_column,
    load_features,
    load_rests,
    load_rows,
    power_of_two,
    rest_of,
    store_rows,
    sums_as_column,
    zero_sums,
)
from cellfoundry_kernels.favor.splits import take_split


@triton.jit
def add_block(
    grad_k_NK, grad_v_NK, slope, k_NK, v_NK, shift_N, scale_N, scale, tile_MK, rest_MK, table_MK, offset,
    log_mass_M, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds what the features of one block give to a tile's sums."""
    logits_NM = exact_products(k_NK, tile_MK, rest_MK, PRECISION)
    # No more than 2^12: a key's weighted exponential is part of the keys' mass of the feature.
    share_NM = tl.math.exp2(logits_NM * scale - log_mass_M[None, :] - shift_N[:, None]).to(k_NK.dtype)
    grad_v_NK = tl.dot(share_NM, table_MK, grad_v_NK, input_precision=PRECISION)
    slope = add_products(slope, share_NM, offset, PRECISION)
    grad_share_NM = tl.dot(v_NK, tl.trans(table_MK), input_precision=PRECISION)
    grad_share_NM = add_outer(grad_share_NM, scale_N, offset, PRECISION)
    grad_logits_NM = share_NM * grad_share_NM.to(share_NM.dtype)
    grad_k_NK = tl.dot(grad_logits_NM, tile_MK, grad_k_NK, input_precision=PRECISION)
    return grad_k_NK, grad_v_NK, slope


@triton.jit
def backward_keys_kernel(
    k_ptr,
    v_ptr,
    weight_ptr,
    grad_k_ptr,
    grad_v_ptr,
    projection_ptr,
    rest_ptr,
    table_ptr,
    offset_ptr,
    log_mass_ptr,
    columns_ptr,
    grad_columns_ptr,
    scalars_ptr,
    largest_ptr,
    scale,
    half,
    root,
    k_cell,
    k_head,
    k_row,
    v_cell,
    v_head,
    v_row,
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
    PRECISION: tl.constexpr,
    DISABLE_LICM: tl.constexpr,
    HOLDS_RESTS: tl.constexpr,
) -> None:
    """DK and dV of one split of one head's keys; the strides ``grad`` are those of both."""
    group, cell, head, first, last = take_split(heads, positions, split_positions, cell_splits)
    k_ptr += cell * k_cell + head * k_head
    v_ptr += cell * v_cell + head * v_head
    grad_k_ptr += cell * grad_cell + head * grad_head
    grad_v_ptr += cell * grad_cell + head * grad_head
    table_ptr += group * FEATURES * CHANNELS
    log_mass_ptr += group * FEATURES
    offset_ptr += group * FEATURES
    projection = load_blocks(projection_ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K)
    rests = load_rests(rest_ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K, HOLDS_RESTS)
    table = load_blocks(table_ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K)
    columns_ptr += group * 2 * CHANNELS
    grad_columns_ptr += group * 2 * CHANNELS
    scalars_ptr += group * 4
    # Shares are raised to fill float16's range: where epsilon has most of the mass, all are small.
    log_gain = LOG2_GAIN - tl.load(scalars_ptr + 3)
    gain = tl.math.exp2(-log_gain)
    shift = tl.load(scalars_ptr + 1) + tl.load(scalars_ptr + 2) - log_gain
    largest = power_of_two(tl.load(largest_ptr + group))
    offsets = load_block_columns(
        offset_ptr, 1.0 / largest, projection[0], FEATURES, FULL, BLOCK_M, TAIL_M, PRECISION
    )

    for start in tl.range(first, last, BLOCK_N, disable_licm=DISABLE_LICM):
        row_N = tl.minimum(tl.arange(0, BLOCK_N), last - 1 - start)
        is_key_N = start + tl.arange(0, BLOCK_N) < last
        k_NK = load_rows(k_ptr, start, row_N, k_row, BLOCK_K, CHANNELS)
        v_NK = load_rows(v_ptr, start, row_N, v_row, BLOCK_K, CHANNELS)
        shift_N = half_norm(k_NK, half) + shift
        if weight_ptr is not None:
            weight_N = tl.load(weight_ptr + cell * positions + start + row_N)
            shift_N -= tl.math.log2(tl.maximum(weight_N, 1e-30))
            shift_N = tl.where(weight_N > 0, shift_N, float("inf"))
        k_NK = as_operand(k_NK, projection[0])
        mean_K = load_column(columns_ptr, BLOCK_K, CHANNELS)
        scale_K = load_column(grad_columns_ptr, BLOCK_K, CHANNELS)
        v_NK = (v_NK.to(tl.float32) - mean_K[None, :]) * scale_K[None, :]
        size_N = power_of_two(tl.maximum(tl.max(tl.abs(v_NK), 1), largest)) * ROOM
        inverse_N = 1.0 / size_N
        v_NK = (v_NK * inverse_N[:, None]).to(k_NK.dtype)

        grad_k_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        grad_v_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        slope = zero_sums(BLOCK_N, PRECISION)
        scale_N = inverse_N * largest
        if PRECISION == "ieee":
            # A loop, and operands from the cache: the plain cores hold rows of operands in registers, and those of
            # more than one block at a time spill, with triton 3.9 at heads of 64 no less than 24 bytes.
            for block in tl.range(0, FULL + 1):
                feature_M = block_features(block, FULL, BLOCK_M, BLOCK_M)
                is_feature_M = feature_M < FEATURES
                log_mass_M = tl.load(log_mass_ptr + feature_M, mask=is_feature_M, other=float("inf"))
                offset_M = tl.load(offset_ptr + feature_M, mask=is_feature_M, other=0.0) / largest
                tile_MK = load_features(projection_ptr, feature_M, FEATURES, CHANNELS, BLOCK_K)
                table_MK = load_features(table_ptr, feature_M, FEATURES, CHANNELS, BLOCK_K)
                grad_k_NK, grad_v_NK, slope = add_block(
                    grad_k_NK, grad_v_NK, slope, k_NK, v_NK, shift_N, scale_N, scale, tile_MK, tile_MK, table_MK,
                    offset_M, log_mass_M, PRECISION,
                )  # fmt: skip
        else:
            for block in tl.static_range(FULL + 1):
                feature_M = block_features(block, FULL, BLOCK_M, TAIL_M)
                log_mass_M = tl.load(log_mass_ptr + feature_M, mask=feature_M < FEATURES, other=float("inf"))
                rest_MK = rest_of(
                    rests, rest_ptr, block, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K, HOLDS_RESTS
                )
                grad_k_NK, grad_v_NK, slope = add_block(
                    grad_k_NK, grad_v_NK, slope, k_NK, v_NK, shift_N, scale_N, scale, projection[block], rest_MK,
                    table[block], offsets[block], log_mass_M, PRECISION,
                )  # fmt: skip
        # The logits' gradients of a key sum to this: its products with the table are those with dV.
        slope_N = (
            tl.sum(grad_v_NK * v_NK.to(tl.float32), 1) * size_N + sums_as_column(slope, PRECISION) * largest
        )
        scale_K = load_column(grad_columns_ptr, BLOCK_K, CHANNELS)
        epsilon_K = load_column(grad_columns_ptr + CHANNELS, BLOCK_K, CHANNELS)
        if weight_ptr is not None:
            grad_v_NK = grad_v_NK * scale_K[None, :] * gain + weight_N[:, None] * epsilon_K[None, :]
        else:
            grad_v_NK = grad_v_NK * scale_K[None, :] * gain + epsilon_K[None, :]
        store_rows(grad_v_ptr, grad_v_NK, start, row_N, is_key_N, grad_row, BLOCK_K, CHANNELS)
        k_NK = load_rows(k_ptr, start, row_N, k_row, BLOCK_K, CHANNELS).to(tl.float32)
        grad_k_NK = (root * gain) * (grad_k_NK * size_N[:, None] - root * slope_N[:, None] * k_NK)
        store_rows(grad_k_ptr, grad_k_NK, start, row_N, is_key_N, grad_row, BLOCK_K, CHANNELS)
