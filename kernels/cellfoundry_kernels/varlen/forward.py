"""Forward kernel of attention over packed cells: an online softmax (FlashAttention-2, Dao 2023, arXiv 2307.08691).

A program owns one tile of queries of one cell and head, and walks over the cell's keys. Only the last tile of
keys, which ends with the cell, is masked.

Shape legend: N tokens over all cells, H heads; kernel tiles: M queries, N keys, K head dim.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from cellfoundry_kernels.varlen.rows import load_rows, store_rows
from cellfoundry_kernels.varlen.schedule import take_tile


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    cu_seqlens_ptr,
    schedule_ptr,
    scale_log2,
    q_stride,
    k_stride,
    v_stride,
    tokens,
    heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Output (N, H, K) and log2-sum-exp2 (H, N) of a tile of queries. Strides are a token's; ``scale_log2`` >= 0."""
    first, length, start, head = take_tile(schedule_ptr, cu_seqlens_ptr, heads, BLOCK_M)
    if start >= length:
        return
    row_M = tl.arange(0, BLOCK_M)
    row_N = tl.arange(0, BLOCK_N)
    stride, column, left = heads * HEAD_DIM, head * HEAD_DIM, length - start
    q_ptr += (first + start) * q_stride + column
    k_ptr += first * k_stride + column
    v_ptr += first * v_stride + column
    out_ptr += (first + start) * stride + column
    lse_ptr += head.to(tl.int64) * tokens + first + start
    q_MK = load_rows(q_ptr, row_M, q_stride, left, HEAD_DIM, BLOCK_K, True)

    maximum_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    out_MK = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    whole = length // BLOCK_N * BLOCK_N
    for LAST in tl.static_range(2):
        for key in range(whole if LAST else 0, length if LAST else whole, BLOCK_N):
            keys_left = length - key
            k_NK = load_rows(k_ptr, row_N, k_stride, keys_left, HEAD_DIM, BLOCK_K, LAST)
            v_NK = load_rows(v_ptr, row_N, v_stride, keys_left, HEAD_DIM, BLOCK_K, LAST)
            logits_MN = tl.dot(q_MK, tl.trans(k_NK), input_precision=PRECISION)
            scaled_MN = logits_MN * scale_log2
            if LAST:
                scaled_MN = tl.where((row_N < keys_left)[None, :], scaled_MN, float("-inf"))
                highest_M = tl.max(scaled_MN, 1)
            else:  # scaled after the maximum, the logits are multiplied in the instruction that subtracts it
                highest_M = tl.max(logits_MN, 1) * scale_log2
            new_maximum_M = tl.maximum(maximum_M, highest_M)
            share_MN = tl.math.exp2(scaled_MN - new_maximum_M[:, None])
            rescale_M = tl.math.exp2(maximum_M - new_maximum_M)
            sum_M = sum_M * rescale_M + tl.sum(share_MN, 1)
            out_MK = tl.dot(
                share_MN.to(v_NK.dtype), v_NK, out_MK * rescale_M[:, None], input_precision=PRECISION
            )
            maximum_M = new_maximum_M
            k_ptr += BLOCK_N * k_stride
            v_ptr += BLOCK_N * v_stride

    store_rows(out_ptr, out_MK / sum_M[:, None], row_M, stride, left, HEAD_DIM, BLOCK_K)
    tl.store(lse_ptr + row_M, maximum_M + tl.math.log2(sum_M), mask=row_M < left)
