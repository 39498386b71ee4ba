"""Backward kernels of attention over packed cells (FlashAttention-2, Dao 2023, arXiv 2307.08691).

One kernel owns tiles of keys and sums dK and dV over the cell's queries, another one owns tiles of queries and
sums dQ over its keys. Nothing is added atomically: sums run in one order, so gradients are the same in every
run, and dQ needs no float32 buffer that is zeroed first and rounded afterwards. The price is seven products a
tile instead of five. As in the forward kernel, only the tile that ends with the cell is masked.

Shape legend: N tokens over all cells, H heads; kernel tiles: M queries, N keys, K head dim.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from cellfoundry_kernels.varlen.rows import load_numbers, load_rows, store_rows
from cellfoundry_kernels.varlen.schedule import take_tile


@triton.jit
def delta_kernel(
    out_ptr,
    grad_out_ptr,
    delta_ptr,
    tokens,
    heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Output times its gradient, summed over the head dim: float32 (H, N)."""
    first = (tl.program_id(0) // heads).to(tl.int64) * BLOCK_M
    head = tl.program_id(0) % heads
    row_M = tl.arange(0, BLOCK_M)
    stride, left = heads * HEAD_DIM, tokens - first
    offset = first * stride + head * HEAD_DIM
    out_MK = load_rows(out_ptr + offset, row_M, stride, left, HEAD_DIM, BLOCK_K, True)
    grad_MK = load_rows(grad_out_ptr + offset, row_M, stride, left, HEAD_DIM, BLOCK_K, True)
    delta_M = tl.sum(out_MK.to(tl.float32) * grad_MK.to(tl.float32), 1)
    tl.store(delta_ptr + head.to(tl.int64) * tokens + first + row_M, delta_M, mask=row_M < left)


@triton.jit
def keys_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_out_ptr,
    grad_k_ptr,
    grad_v_ptr,
    lse_ptr,
    delta_ptr,
    cu_seqlens_ptr,
    schedule_ptr,
    scale,
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
    """DK and dV of a tile of keys: a walk over the cell's queries."""
    first, length, start, head = take_tile(schedule_ptr, cu_seqlens_ptr, heads, BLOCK_N)
    if start >= length:
        return
    row_M = tl.arange(0, BLOCK_M)
    row_N = tl.arange(0, BLOCK_N)
    stride, column, left = heads * HEAD_DIM, head * HEAD_DIM, length - start
    q_ptr += first * q_stride + column
    k_ptr += (first + start) * k_stride + column
    v_ptr += (first + start) * v_stride + column
    grad_out_ptr += first * stride + column
    grad_k_ptr += (first + start) * stride + column
    grad_v_ptr += (first + start) * stride + column
    lse_ptr += head.to(tl.int64) * tokens + first
    delta_ptr += head.to(tl.int64) * tokens + first
    k_NK = load_rows(k_ptr, row_N, k_stride, left, HEAD_DIM, BLOCK_K, True)
    v_NK = load_rows(v_ptr, row_N, v_stride, left, HEAD_DIM, BLOCK_K, True)

    grad_k_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    grad_v_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    whole = length // BLOCK_M * BLOCK_M
    for LAST in tl.static_range(2):
        for query in range(whole if LAST else 0, length if LAST else whole, BLOCK_M):
            # Beyond the cell's end all of these are zero, and so is what they add to dK and dV.
            queries_left = length - query
            q_MK = load_rows(q_ptr, row_M, q_stride, queries_left, HEAD_DIM, BLOCK_K, LAST)
            grad_MK = load_rows(grad_out_ptr, row_M, stride, queries_left, HEAD_DIM, BLOCK_K, LAST)
            lse_M = load_numbers(lse_ptr, row_M, queries_left, LAST)
            delta_M = load_numbers(delta_ptr, row_M, queries_left, LAST)

            logits_NM = tl.dot(k_NK, tl.trans(q_MK), input_precision=PRECISION)
            share_NM = tl.math.exp2(logits_NM * scale_log2 - lse_M[None, :])
            grad_v_NK = tl.dot(share_NM.to(grad_MK.dtype), grad_MK, grad_v_NK, input_precision=PRECISION)
            grad_share_NM = tl.dot(v_NK, tl.trans(grad_MK), input_precision=PRECISION)
            grad_logits_NM = share_NM * (grad_share_NM - delta_M[None, :])
            grad_k_NK = tl.dot(grad_logits_NM.to(q_MK.dtype), q_MK, grad_k_NK, input_precision=PRECISION)
            q_ptr += BLOCK_M * q_stride
            grad_out_ptr += BLOCK_M * stride
            lse_ptr += BLOCK_M
            delta_ptr += BLOCK_M

    store_rows(grad_k_ptr, grad_k_NK * scale, row_N, stride, left, HEAD_DIM, BLOCK_K)
    store_rows(grad_v_ptr, grad_v_NK, row_N, stride, left, HEAD_DIM, BLOCK_K)


@triton.jit
def queries_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_out_ptr,
    grad_q_ptr,
    lse_ptr,
    delta_ptr,
    cu_seqlens_ptr,
    schedule_ptr,
    scale,
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
    """DQ of a tile of queries: a walk over the cell's keys."""
    first, length, start, head = take_tile(schedule_ptr, cu_seqlens_ptr, heads, BLOCK_M)
    if start >= length:
        return
    row_M = tl.arange(0, BLOCK_M)
    row_N = tl.arange(0, BLOCK_N)
    stride, column, left = heads * HEAD_DIM, head * HEAD_DIM, length - start
    q_ptr += (first + start) * q_stride + column
    k_ptr += first * k_stride + column
    v_ptr += first * v_stride + column
    grad_out_ptr += (first + start) * stride + column
    grad_q_ptr += (first + start) * stride + column
    lse_ptr += head.to(tl.int64) * tokens + first + start
    delta_ptr += head.to(tl.int64) * tokens + first + start
    q_MK = load_rows(q_ptr, row_M, q_stride, left, HEAD_DIM, BLOCK_K, True)
    grad_MK = load_rows(grad_out_ptr, row_M, stride, left, HEAD_DIM, BLOCK_K, True)
    lse_M = load_numbers(lse_ptr, row_M, left, True)
    delta_M = load_numbers(delta_ptr, row_M, left, True)

    grad_q_MK = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
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
            share_MN = tl.math.exp2(scaled_MN - lse_M[:, None])
            grad_share_MN = tl.dot(grad_MK, tl.trans(v_NK), input_precision=PRECISION)
            grad_logits_MN = share_MN * (grad_share_MN - delta_M[:, None])
            grad_q_MK = tl.dot(grad_logits_MN.to(k_NK.dtype), k_NK, grad_q_MK, input_precision=PRECISION)
            k_ptr += BLOCK_N * k_stride
            v_ptr += BLOCK_N * v_stride

    store_rows(grad_q_ptr, grad_q_MK * scale, row_M, stride, left, HEAD_DIM, BLOCK_K)
