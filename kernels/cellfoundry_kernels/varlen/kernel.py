"""Attention over packed cells with an online softmax (FlashAttention-2, Dao 2023, arXiv 2307.08691).

Backward is deterministic: one kernel owns key tiles (dK, dV), another one owns query tiles (dQ), nothing is
added atomically. Each program owns one tile of one cell and head; programs past a cell's end leave at once.

Shape legend: N tokens over all cells, C cells, H heads, K head dim; kernel tiles: M queries, N keys, K head
dim.
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

from cellfoundry_kernels.launch import TYPE_NAMES, Launch, LaunchOptions, argument_types, dot_precision, tile

LOG2_E = math.log2(math.e)


@triton.jit
def _load_rows(ptr, row, is_row, head, stride, head_dim, BLOCK_K: tl.constexpr):
    """Rows of one head as a (rows, BLOCK_K) tile, zeros outside."""
    column_K = tl.arange(0, BLOCK_K)
    offset = row[:, None] * stride + head * head_dim + column_K[None, :]
    return tl.load(ptr + offset, mask=is_row[:, None] & (column_K < head_dim)[None, :], other=0.0)


@triton.jit
def _store_rows(ptr, rows, row, is_row, head, stride, head_dim, BLOCK_K: tl.constexpr) -> None:
    """The counterpart of ``_load_rows``."""
    column_K = tl.arange(0, BLOCK_K)
    offset = row[:, None] * stride + head * head_dim + column_K[None, :]
    mask = is_row[:, None] & (column_K < head_dim)[None, :]
    tl.store(ptr + offset, rows.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    cu_seqlens_ptr,
    scale_log2,
    q_stride,
    k_stride,
    v_stride,
    tokens,
    heads,
    head_dim,
    cell_tiles,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Output and log2-sum-exp2 of one tile of queries. Strides are per token, heads lie side by side."""
    cell = tl.program_id(0) // cell_tiles
    head = tl.program_id(1)
    first = tl.load(cu_seqlens_ptr + cell).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + cell + 1) - first).to(tl.int32)
    start = (tl.program_id(0) % cell_tiles) * BLOCK_M
    if start >= length:
        return
    query_M = start + tl.arange(0, BLOCK_M)
    is_query_M = query_M < length
    q_MK = _load_rows(q_ptr, first + query_M, is_query_M, head, q_stride, head_dim, BLOCK_K)

    maximum_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    out_MK = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for key_start in range(0, length, BLOCK_N):
        key_N = key_start + tl.arange(0, BLOCK_N)
        is_key_N = key_N < length
        k_NK = _load_rows(k_ptr, first + key_N, is_key_N, head, k_stride, head_dim, BLOCK_K)
        v_NK = _load_rows(v_ptr, first + key_N, is_key_N, head, v_stride, head_dim, BLOCK_K)
        logits_MN = tl.dot(q_MK, tl.trans(k_NK), input_precision=PRECISION) * scale_log2
        logits_MN = tl.where(is_key_N[None, :], logits_MN, float("-inf"))
        new_maximum_M = tl.maximum(maximum_M, tl.max(logits_MN, 1))
        share_MN = tl.math.exp2(logits_MN - new_maximum_M[:, None])
        rescale_M = tl.math.exp2(maximum_M - new_maximum_M)
        sum_M = sum_M * rescale_M + tl.sum(share_MN, 1)
        out_MK = out_MK * rescale_M[:, None]
        out_MK += tl.dot(share_MN.to(v_NK.dtype), v_NK, input_precision=PRECISION)
        maximum_M = new_maximum_M

    out_MK = out_MK / sum_M[:, None]
    _store_rows(out_ptr, out_MK, first + query_M, is_query_M, head, heads * head_dim, head_dim, BLOCK_K)
    lse_offset_M = head.to(tl.int64) * tokens + first + query_M
    tl.store(lse_ptr + lse_offset_M, maximum_M + tl.math.log2(sum_M), mask=is_query_M)


@triton.jit
def backward_keys_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_out_ptr,
    grad_k_ptr,
    grad_v_ptr,
    lse_ptr,
    delta_ptr,
    cu_seqlens_ptr,
    scale,
    scale_log2,
    q_stride,
    k_stride,
    v_stride,
    tokens,
    heads,
    head_dim,
    cell_tiles,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """DK and dV of one tile of keys: a walk over the cell's queries."""
    cell = tl.program_id(0) // cell_tiles
    head = tl.program_id(1)
    first = tl.load(cu_seqlens_ptr + cell).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + cell + 1) - first).to(tl.int32)
    start = (tl.program_id(0) % cell_tiles) * BLOCK_N
    if start >= length:
        return
    key_N = start + tl.arange(0, BLOCK_N)
    is_key_N = key_N < length
    stride = heads * head_dim
    row_offset = head.to(tl.int64) * tokens + first
    k_NK = _load_rows(k_ptr, first + key_N, is_key_N, head, k_stride, head_dim, BLOCK_K)
    v_NK = _load_rows(v_ptr, first + key_N, is_key_N, head, v_stride, head_dim, BLOCK_K)

    grad_k_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    grad_v_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for query_start in range(0, length, BLOCK_M):
        query_M = query_start + tl.arange(0, BLOCK_M)
        is_query_M = query_M < length
        q_MK = _load_rows(q_ptr, first + query_M, is_query_M, head, q_stride, head_dim, BLOCK_K)
        grad_MK = _load_rows(grad_out_ptr, first + query_M, is_query_M, head, stride, head_dim, BLOCK_K)
        lse_M = tl.load(lse_ptr + row_offset + query_M, mask=is_query_M, other=0.0)
        delta_M = tl.load(delta_ptr + row_offset + query_M, mask=is_query_M, other=0.0)

        logits_NM = tl.dot(k_NK, tl.trans(q_MK), input_precision=PRECISION) * scale_log2
        share_NM = tl.where(is_query_M[None, :], tl.math.exp2(logits_NM - lse_M[None, :]), 0.0)
        grad_v_NK += tl.dot(share_NM.to(grad_MK.dtype), grad_MK, input_precision=PRECISION)
        grad_share_NM = tl.dot(v_NK, tl.trans(grad_MK), input_precision=PRECISION)
        grad_logits_NM = share_NM * (grad_share_NM - delta_M[None, :])
        grad_k_NK += tl.dot(grad_logits_NM.to(q_MK.dtype), q_MK, input_precision=PRECISION)

    _store_rows(grad_k_ptr, grad_k_NK * scale, first + key_N, is_key_N, head, stride, head_dim, BLOCK_K)
    _store_rows(grad_v_ptr, grad_v_NK, first + key_N, is_key_N, head, stride, head_dim, BLOCK_K)


@triton.jit
def backward_queries_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_out_ptr,
    grad_q_ptr,
    lse_ptr,
    delta_ptr,
    cu_seqlens_ptr,
    scale,
    scale_log2,
    q_stride,
    k_stride,
    v_stride,
    tokens,
    heads,
    head_dim,
    cell_tiles,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """DQ of one tile of queries: a walk over the cell's keys."""
    cell = tl.program_id(0) // cell_tiles
    head = tl.program_id(1)
    first = tl.load(cu_seqlens_ptr + cell).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + cell + 1) - first).to(tl.int32)
    start = (tl.program_id(0) % cell_tiles) * BLOCK_M
    if start >= length:
        return
    query_M = start + tl.arange(0, BLOCK_M)
    is_query_M = query_M < length
    stride = heads * head_dim
    row_offset = head.to(tl.int64) * tokens + first
    q_MK = _load_rows(q_ptr, first + query_M, is_query_M, head, q_stride, head_dim, BLOCK_K)
    grad_MK = _load_rows(grad_out_ptr, first + query_M, is_query_M, head, stride, head_dim, BLOCK_K)
    lse_M = tl.load(lse_ptr + row_offset + query_M, mask=is_query_M, other=0.0)
    delta_M = tl.load(delta_ptr + row_offset + query_M, mask=is_query_M, other=0.0)

    grad_q_MK = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for key_start in range(0, length, BLOCK_N):
        key_N = key_start + tl.arange(0, BLOCK_N)
        is_key_N = key_N < length
        k_NK = _load_rows(k_ptr, first + key_N, is_key_N, head, k_stride, head_dim, BLOCK_K)
        v_NK = _load_rows(v_ptr, first + key_N, is_key_N, head, v_stride, head_dim, BLOCK_K)
        logits_MN = tl.dot(q_MK, tl.trans(k_NK), input_precision=PRECISION) * scale_log2
        share_MN = tl.where(is_key_N[None, :], tl.math.exp2(logits_MN - lse_M[:, None]), 0.0)
        grad_share_MN = tl.dot(grad_MK, tl.trans(v_NK), input_precision=PRECISION)
        grad_logits_MN = share_MN * (grad_share_MN - delta_M[:, None])
        grad_q_MK += tl.dot(grad_logits_MN.to(k_NK.dtype), k_NK, input_precision=PRECISION)

    _store_rows(grad_q_ptr, grad_q_MK * scale, first + query_M, is_query_M, head, stride, head_dim, BLOCK_K)


def tiles(dtype: torch.dtype, head_dim: int) -> dict[str, Any]:
    """Tile sizes of all three kernels; float32 products run on the plain cores and need smaller ones."""
    # Query and key tiles are equally long, so that one tile count serves all three launches.
    block = 32 if dtype == torch.float32 else 64
    return {"BLOCK_M": block, "BLOCK_N": block, "BLOCK_K": tile(head_dim), "PRECISION": dot_precision(dtype)}


def forward_options(head_dim: int) -> LaunchOptions:
    """Launch options of the forward kernel; others spill registers on A100 (test_triton_compile.py)."""
    return {"num_warps": 8, "num_stages": 2} if head_dim > 64 else {"num_warps": 4, "num_stages": 3}


def backward_options() -> LaunchOptions:
    """Launch options of both backward kernels, whose four products a tile need the registers of 8 warps."""
    return {"num_warps": 8, "num_stages": 2}


def _packed(x_NHK: Tensor) -> Tensor:
    """The tensor where a token's heads lie side by side, as in views of a packed projection; else a copy."""
    return x_NHK if x_NHK.stride()[1:] == (x_NHK.shape[2], 1) else x_NHK.contiguous()


def _launch(
    kernel: Any,
    pointers: tuple[Tensor, ...],
    scales: tuple[float, ...],
    qkv: tuple[Tensor, ...],
    max_seqlen: int,
    options: LaunchOptions,
) -> None:
    """One program a tile, cell and head; the tile count is that of the longest cell."""
    tokens, heads, head_dim = qkv[0].shape
    cells = len(pointers[-1]) - 1
    blocks = tiles(qkv[0].dtype, head_dim)
    cell_tiles = triton.cdiv(max_seqlen, blocks["BLOCK_M"])
    if tokens and cells:
        strides = tuple(x_NHK.stride(0) for x_NHK in qkv)
        kernel[cells * cell_tiles, heads](
            *qkv,
            *pointers,
            *scales,
            *strides,
            tokens,
            heads,
            head_dim,
            cell_tiles,
            **blocks,
            **options,
        )


def forward(
    q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (N, H, K) and log2-sum-exp2 of the scaled logits, float32 (H, N)."""
    qkv = (_packed(q_NHK), _packed(k_NHK), _packed(v_NHK))
    out_NHK = torch.empty(q_NHK.shape, dtype=q_NHK.dtype, device=q_NHK.device)
    lse_HN = out_NHK.new_empty(q_NHK.shape[1], q_NHK.shape[0], dtype=torch.float32)
    pointers = (out_NHK, lse_HN, cu_seqlens.contiguous())
    options = forward_options(q_NHK.shape[2])
    _launch(forward_kernel, pointers, (scale * LOG2_E,), qkv, max_seqlen, options)
    return out_NHK, lse_HN


def backward(
    grad_NHK: Tensor,
    q_NHK: Tensor,
    k_NHK: Tensor,
    v_NHK: Tensor,
    out_NHK: Tensor,
    lse_HN: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    qkv = (_packed(q_NHK), _packed(k_NHK), _packed(v_NHK))
    grad_NHK, cu_seqlens = grad_NHK.contiguous(), cu_seqlens.contiguous()
    delta_HN = (out_NHK.float() * grad_NHK.float()).sum(-1).T.contiguous()
    grad_q_NHK, grad_k_NHK, grad_v_NHK = (torch.empty_like(out_NHK) for _ in qkv)
    scales = (scale, scale * LOG2_E)
    rows = (lse_HN, delta_HN, cu_seqlens)
    keys, queries = (grad_NHK, grad_k_NHK, grad_v_NHK, *rows), (grad_NHK, grad_q_NHK, *rows)
    _launch(backward_keys_kernel, keys, scales, qkv, max_seqlen, backward_options())
    _launch(backward_queries_kernel, queries, scales, qkv, max_seqlen, backward_options())
    return grad_q_NHK, grad_k_NHK, grad_v_NHK


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_NHK: Tensor,
        k_NHK: Tensor,
        v_NHK: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        scale: float,
    ) -> Tensor:
        out_NHK, lse_HN = forward(q_NHK, k_NHK, v_NHK, cu_seqlens, max_seqlen, scale)
        ctx.save_for_backward(q_NHK, k_NHK, v_NHK, out_NHK, lse_HN, cu_seqlens)
        ctx.max_seqlen, ctx.scale = max_seqlen, scale
        return out_NHK

    @staticmethod
    def backward(ctx: Any, grad_NHK: Tensor) -> tuple[Tensor | None, ...]:
        q_NHK, k_NHK, v_NHK, out_NHK, lse_HN, cu_seqlens = ctx.saved_tensors
        grads = backward(
            grad_NHK, q_NHK, k_NHK, v_NHK, out_NHK, lse_HN, cu_seqlens, ctx.max_seqlen, ctx.scale
        )
        return (*grads, None, None, None)


def varlen_attention(
    q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> Tensor:
    """As ``cellfoundry_kernels.varlen``."""
    return _VarlenAttention.apply(q_NHK, k_NHK, v_NHK, cu_seqlens, max_seqlen, scale)


def published_launches() -> list[Launch]:
    """What runs at the head dims that models use."""
    other = {
        "cu_seqlens_ptr": "*i32",
        "lse_ptr": "*fp32",
        "delta_ptr": "*fp32",
        "scale": "fp32",
        "scale_log2": "fp32",
    }
    found = []
    for head_dim, dtype in (
        (64, torch.float32),
        (32, torch.bfloat16),
        (64, torch.bfloat16),
        (128, torch.bfloat16),
    ):
        constants = tiles(dtype, head_dim)
        for kernel, chosen in (
            (forward_kernel, forward_options(head_dim)),
            (backward_keys_kernel, backward_options()),
            (backward_queries_kernel, backward_options()),
        ):
            name = f"varlen_attention-{kernel.fn.__name__}-d{head_dim}-{TYPE_NAMES[dtype]}"
            types = argument_types(kernel, dtype, constants, other)
            aligned = ("q_stride", "k_stride", "v_stride", "head_dim")
            found.append(Launch(name, kernel, types, constants, chosen, aligned))
    return found
