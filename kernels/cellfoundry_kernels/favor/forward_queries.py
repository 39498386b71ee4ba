"""Forward kernel of FAVOR+ over queries, which read the context that ``forward_keys`` made.

A query attends to M features with shares ``E B`` and values ``C``, and to epsilon, whose value is zero by the choice
of ``o``. Shares, and values less their mean, are what half precision keeps well.

Shape legend: see ``blocks``.
"""

# Arguments of a kernel have no Python type, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from cellfoundry_kernels.favor.blocks import (
    as_operand,
    block_features,
    half_norm,
    load_blocks,
    load_column,
    load_features,
    load_rows,
    store_rows,
)
from cellfoundry_kernels.favor.splits import take_split


@triton.jit
def attend_block(
    out_NK, total_N, top_N, q_NK, tile_MK, context_MK, log_mass_M, is_feature_M, scale, FIRST: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds what a tile of queries reads from the features of one block: the ``FIRST``, or one that is ``PADDED``."""
    logits_NM = tl.dot(q_NK, tl.trans(tile_MK), input_precision=PRECISION)
    if PADDED:
        logits_NM = tl.where(is_feature_M[None, :], logits_NM, float("-inf"))
    new_top_N = tl.maximum(top_N, tl.max(logits_NM, 1) * scale)
    share_NM = tl.math.exp2(logits_NM * scale + log_mass_M[None, :] - new_top_N[:, None])
    if not FIRST:
        rescale_N = tl.math.exp2(top_N - new_top_N)
        out_NK, total_N = out_NK * rescale_N[:, None], total_N * rescale_N
    total_N += tl.sum(share_NM, 1)
    out_NK = tl.dot(share_NM.to(q_NK.dtype), context_MK, out_NK, input_precision=PRECISION)
    return out_NK, total_N, new_top_N


@triton.jit
def queries_kernel(
    q_ptr,
    out_ptr,
    rows_ptr,
    projection_ptr,
    context_ptr,
    log_mass_ptr,
    columns_ptr,
    scalars_ptr,
    scale,
    half,
    q_cell,
    q_head,
    q_row,
    out_cell,
    out_head,
    out_row,
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
) -> None:
    """Output of one split of one head's queries; projection and context stay in shared memory meanwhile.

    ``rows`` is, for backward, the log2 of what a query's exponentials are divided by, 1 over the denominator, and
    the query's largest product.
    """
    group, cell, head, first, last = take_split(heads, positions, split_positions, cell_splits)
    q_ptr += cell * q_cell + head * q_head
    out_ptr += cell * out_cell + head * out_head
    context_ptr += group * FEATURES * CHANNELS
    log_mass_ptr += group * FEATURES
    rows_ptr += group * positions * 3
    projection = load_blocks(projection_ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K)
    context = load_blocks(context_ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K)
    columns_ptr += group * 2 * CHANNELS
    epsilon_share = tl.load(scalars_ptr + group * 4)

    for start in tl.range(first, last, BLOCK_N, disable_licm=DISABLE_LICM):
        row_N = tl.minimum(tl.arange(0, BLOCK_N), last - 1 - start)
        is_query_N = start + tl.arange(0, BLOCK_N) < last
        q_NK = load_rows(q_ptr, start, row_N, q_row, BLOCK_K, CHANNELS)
        norm_N = half_norm(q_NK, half)
        q_NK = as_operand(q_NK, projection[0])
        out_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        total_N = tl.zeros([BLOCK_N], tl.float32)
        top_N = tl.full([BLOCK_N], float("-inf"), tl.float32)
        # As an online softmax: what is summed is relative to each query's largest product so far.
        if PRECISION == "ieee":
            # A loop, and operands from the cache, for the reason that ``backward_keys`` gives.
            for block in tl.range(0, FULL + 1):
                feature_M = block_features(block, FULL, BLOCK_M, BLOCK_M)
                log_mass_M = tl.load(log_mass_ptr + feature_M, mask=feature_M < FEATURES, other=0.0)
                tile_MK = load_features(projection_ptr, feature_M, FEATURES, CHANNELS, BLOCK_K)
                context_MK = load_features(context_ptr, feature_M, FEATURES, CHANNELS, BLOCK_K)
                out_NK, total_N, top_N = attend_block(
                    out_NK, total_N, top_N, q_NK, tile_MK, context_MK, log_mass_M, feature_M < FEATURES, scale,
                    False, True, PRECISION,
                )  # fmt: skip
        else:
            for block in tl.static_range(FULL + 1):
                feature_M = block_features(block, FULL, BLOCK_M, TAIL_M)
                log_mass_M = tl.load(log_mass_ptr + feature_M, mask=feature_M < FEATURES, other=0.0)
                out_NK, total_N, top_N = attend_block(
                    out_NK, total_N, top_N, q_NK, projection[block], context[block], log_mass_M,
                    feature_M < FEATURES, scale, block == 0, block == FULL, PRECISION,
                )  # fmt: skip
        factor_N = tl.math.exp2(-norm_N)
        denominator_N = factor_N * total_N + epsilon_share
        rows = rows_ptr + 3 * (start + tl.arange(0, BLOCK_N))
        tl.store(rows, top_N + norm_N + tl.math.log2(denominator_N), mask=is_query_N)
        tl.store(rows + 1, 1.0 / denominator_N, mask=is_query_N)
        tl.store(rows + 2, top_N, mask=is_query_N)
        factor_N = factor_N / denominator_N
        # Columns are loaded here, not before the loop: they would cost 32 registers all along.
        mean_K = load_column(columns_ptr, BLOCK_K, CHANNELS)
        scale_K = load_column(columns_ptr + CHANNELS, BLOCK_K, CHANNELS)
        out_NK = out_NK * factor_N[:, None] * scale_K[None, :] + mean_K[None, :]
        store_rows(out_ptr, out_NK, start, row_N, is_query_N, out_row, BLOCK_K, CHANNELS)
