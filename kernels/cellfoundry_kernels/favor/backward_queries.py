"""Backward kernel of FAVOR+ over queries: dQ.

Features are computed again; ``forward_queries`` kept each query's normaliser. Its features share it: ``share = E B /
(sum E B + epsilon's)``, the output is ``o + share C``. With ``g`` its gradient and ``d = g . (out - o)``, the logits
have the gradient ``share (g . C - d)``: that takes ``d`` exactly, and so repeats ``share C`` instead of reading a
rounded output.

Shape legend: see ``blocks``.
"""

# Arguments of a kernel have no Python type, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from cellfoundry_kernels.favor.blocks import (
    add_products,
    as_columns,
    as_operand,
    block_features,
    exact_products,
    load_blocks,
    load_column,
    load_rests,
    load_rows,
    power_of_two,
    rest_of,
    store_rows,
    sums_as_column,
    zero_sums,
)
from cellfoundry_kernels.favor.splits import take_split

# Shares times 2^12 stay below 16,384 with the room that rows are divided by: float16 keeps shares down to 1.5e-8
# with all its bits, and some down to 1.5e-11.
LOG2_GAIN = tl.constexpr(12.0)
ROOM = tl.constexpr(128.0)


@triton.jit
def backward_queries_kernel(
    q_ptr,
    grad_out_ptr,
    grad_q_ptr,
    rows_ptr,
    delta_ptr,
    projection_ptr,
    rest_ptr,
    context_ptr,
    log_mass_ptr,
    columns_ptr,
    scalars_ptr,
    scale,
    root,
    q_cell,
    q_head,
    q_row,
    grad_cell,
    grad_head,
    grad_row,
    grad_q_cell,
    grad_q_head,
    grad_q_row,
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
    """DQ and ``d`` of one split of one head's queries."""
    group, cell, head, first, last = take_split(heads, positions, split_positions, cell_splits)
    q_ptr += cell * q_cell + head * q_head
    grad_out_ptr += cell * grad_cell + head * grad_head
    grad_q_ptr += cell * grad_q_cell + head * grad_q_head
    context_ptr += group * FEATURES * CHANNELS
    log_mass_ptr += group * FEATURES
    rows_ptr += group * positions * 3
    delta_ptr += group * positions
    projection = load_blocks(projection_ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K)
    rests = load_rests(rest_ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K, HOLDS_RESTS)
    context = load_blocks(context_ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K)
    columns_ptr += group * 2 * CHANNELS
    epsilon_share = tl.load(scalars_ptr + group * 4)

    for start in tl.range(first, last, BLOCK_N, disable_licm=DISABLE_LICM):
        row_N = tl.minimum(tl.arange(0, BLOCK_N), last - 1 - start)
        is_query_N = start + tl.arange(0, BLOCK_N) < last
        q_NK = load_rows(q_ptr, start, row_N, q_row, BLOCK_K, CHANNELS)
        q_NK = as_operand(q_NK, projection[0])
        rows = rows_ptr + 3 * (start + row_N)
        # Relative to the query's largest product, shares fill float16's range, however small they are.
        top_N = tl.load(rows + 2)
        shift_N = top_N - LOG2_GAIN
        shares, total = (), zero_sums(BLOCK_N, PRECISION)
        out_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for block in tl.static_range(FULL + 1):
            feature_M = block_features(block, FULL, BLOCK_M, TAIL_M)
            log_mass_M = tl.load(log_mass_ptr + feature_M, mask=feature_M < FEATURES, other=float("-inf"))
            rest_MK = rest_of(
                rests, rest_ptr, block, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K, HOLDS_RESTS
            )
            logits_NM = exact_products(q_NK, projection[block], rest_MK, PRECISION)
            share_NM = tl.math.exp2(logits_NM * scale + log_mass_M[None, :] - shift_N[:, None]).to(q_NK.dtype)
            out_NK = tl.dot(share_NM, context[block], out_NK, input_precision=PRECISION)
            ones = as_columns(tl.full([share_NM.shape[1]], 1.0, tl.float32), q_NK, PRECISION)
            total = add_products(total, share_NM, ones, PRECISION)
            shares += (share_NM,)

        # Shares add up to 1 with epsilon's as they were rounded: where one is nearly 1, what is left of it counts.
        inverse_N = tl.load(rows + 1)
        factor_N = tl.math.exp2(top_N - tl.load(rows) - LOG2_GAIN) / inverse_N
        inverse_N = 1.0 / (factor_N * sums_as_column(total, PRECISION) + epsilon_share)
        factor_N *= inverse_N

        scale_K = load_column(columns_ptr + CHANNELS, BLOCK_K, CHANNELS)
        grad_NK = load_rows(grad_out_ptr, start, row_N, grad_row, BLOCK_K, CHANNELS).to(tl.float32)
        grad_NK *= scale_K[None, :]
        delta_N = tl.sum(grad_NK * out_NK, 1) * factor_N
        tl.store(delta_ptr + start + tl.arange(0, BLOCK_N), delta_N, mask=is_query_N)
        size_N = power_of_two(tl.max(tl.abs(grad_NK), 1)) * ROOM
        grad_NK = (grad_NK * (1.0 / size_N)[:, None]).to(q_NK.dtype)
        offset_N1 = -(delta_N / size_N)[:, None]
        grad_q_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for block in tl.static_range(FULL + 1):
            grad_share_NM = tl.dot(grad_NK, tl.trans(context[block]), input_precision=PRECISION) + offset_N1
            grad_logits_NM = shares[block] * grad_share_NM.to(q_NK.dtype)
            grad_q_NK = tl.dot(grad_logits_NM, projection[block], grad_q_NK, input_precision=PRECISION)
        # The logits' gradients of a query sum to d times epsilon's share.
        slope_N = delta_N * epsilon_share * inverse_N
        size_N *= factor_N
        # Read again: holding the queries until here costs registers, and they are in the cache.
        q_NK = load_rows(q_ptr, start, row_N, q_row, BLOCK_K, CHANNELS).to(tl.float32)
        grad_q_NK = root * (grad_q_NK * size_N[:, None] - root * slope_N[:, None] * q_NK)
        store_rows(grad_q_ptr, grad_q_NK, start, row_N, is_query_N, grad_q_row, BLOCK_K, CHANNELS)
