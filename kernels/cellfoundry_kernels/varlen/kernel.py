"""Attention over packed cells as registered ops, and what they launch.

Useful FLOPs are 4 H K sum(n_c^2) forward and 2.5 times that backward; the kernels here spend 3.5 times that
backward (see backward.py). At 64 cells x 2,000 tokens, 12 heads x 64, that is 0.79 TFLOP forward over 0.8 GB,
so the products bound it (1.0 ms at 790 TFLOP/s) and not the memory (0.2 ms at 4.3 TB/s).

Shape legend: N tokens over all cells, C cells, H heads, K head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from cellfoundry_kernels.launch import (
    TYPE_NAMES,
    Launch,
    LaunchOptions,
    argument_types,
    capability_of,
    dot_precision,
    registered_op,
    tile,
)
from cellfoundry_kernels.varlen.backward import delta_kernel, keys_kernel, queries_kernel
from cellfoundry_kernels.varlen.forward import forward_kernel
from cellfoundry_kernels.varlen.schedule import make_schedule, published_schedule
from cellfoundry_kernels.varlen.tiles import HALF, SHORT, SINGLE, Kernel, Tile, tile_for

LOG2_E = math.log2(math.e)
KERNELS: dict[Kernel, Any] = {"forward": forward_kernel, "keys": keys_kernel, "queries": queries_kernel}
DELTA_ROWS = 128
DELTA_OPTIONS: LaunchOptions = {"num_warps": 4, "num_stages": 1}


def launch(
    kernel: Kernel,
    qkv: tuple[Tensor, Tensor, Tensor],
    tensors: tuple[Tensor, ...],
    cu_seqlens: Tensor,
    order: Tensor,
    scales: tuple[float, ...],
    sizes: Tile,
) -> None:
    """One program a tile of ``order`` and head; ``tensors`` and ``scales`` are the kernel's own."""
    tokens, heads, head_dim = qkv[0].shape
    strides = tuple(x_NHK.stride(0) for x_NHK in qkv)
    KERNELS[kernel][(len(order) * heads,)](
        *(*qkv, *tensors, cu_seqlens, order, *scales, *strides, tokens, heads),
        **constants(kernel, qkv[0].dtype, head_dim, sizes),
        **sizes.options,
    )


def constants(kernel: Kernel, dtype: torch.dtype, head_dim: int, sizes: Tile) -> dict[str, Any]:
    """What a kernel is compiled for."""
    queries, keys = (sizes.columns, sizes.rows) if kernel == "keys" else (sizes.rows, sizes.columns)
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_M": queries,
        "BLOCK_N": keys,
        "BLOCK_K": tile(head_dim),
        "PRECISION": dot_precision(dtype),
    }


def _packed(x_NHK: Tensor) -> Tensor:
    """The tensor where a token's heads lie side by side, as in views of a packed projection; else a copy."""
    is_packed = x_NHK.stride()[1:] == (x_NHK.shape[2], 1)
    # 128 rows of a tile are addressed with 32 bits.
    return x_NHK if is_packed and x_NHK.stride(0) < 2**24 else x_NHK.contiguous()


@registered_op("varlen_attention")
def _forward(
    q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (N, H, K) and log2-sum-exp2 of the scaled logits, float32 (H, N)."""
    tokens, heads, head_dim = q_NHK.shape
    out_NHK = torch.empty(q_NHK.shape, dtype=q_NHK.dtype, device=q_NHK.device)
    lse_HN = out_NHK.new_empty(heads, tokens, dtype=torch.float32)
    if tokens:
        qkv = (_packed(q_NHK), _packed(k_NHK), _packed(v_NHK))
        sizes = tile_for("forward", q_NHK.dtype, head_dim, max_seqlen, capability_of(q_NHK.device))
        cu_seqlens = cu_seqlens.contiguous()
        order = make_schedule(cu_seqlens, tokens, sizes.rows)
        launch("forward", qkv, (out_NHK, lse_HN), cu_seqlens, order, (scale * LOG2_E,), sizes)
    return out_NHK, lse_HN


@_forward.register_fake
def _(
    q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor]:
    tokens, heads, head_dim = q_NHK.shape
    out_NHK = q_NHK.new_empty(tokens, heads, head_dim)
    return out_NHK, q_NHK.new_empty(heads, tokens, dtype=torch.float32)


@registered_op("varlen_attention_backward")
def _backward(
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
    """Gradients of queries, keys and values, each (N, H, K)."""
    tokens, heads, head_dim = q_NHK.shape
    grad_q_NHK, grad_k_NHK, grad_v_NHK = (
        torch.empty(q_NHK.shape, dtype=q_NHK.dtype, device=q_NHK.device) for _ in "qkv"
    )
    if tokens:
        qkv = (_packed(q_NHK), _packed(k_NHK), _packed(v_NHK))
        grad_NHK, out_NHK, lse_HN = grad_NHK.contiguous(), out_NHK.contiguous(), lse_HN.contiguous()
        cu_seqlens = cu_seqlens.contiguous()
        delta_HN = torch.empty_like(lse_HN)
        delta_kernel[(triton.cdiv(tokens, DELTA_ROWS) * heads,)](
            *(out_NHK, grad_NHK, delta_HN, tokens, heads),
            **delta_constants(head_dim),
            **DELTA_OPTIONS,
        )
        orders: dict[int, Tensor] = {}
        grads: dict[Kernel, tuple[Tensor, ...]]
        grads = {"keys": (grad_k_NHK, grad_v_NHK), "queries": (grad_q_NHK,)}
        for kernel, grads_of_kernel in grads.items():
            sizes = tile_for(kernel, q_NHK.dtype, head_dim, max_seqlen, capability_of(q_NHK.device))
            if sizes.rows not in orders:
                orders[sizes.rows] = make_schedule(cu_seqlens, tokens, sizes.rows)
            tensors = (grad_NHK, *grads_of_kernel, lse_HN, delta_HN)
            scales = (scale, scale * LOG2_E)
            launch(kernel, qkv, tensors, cu_seqlens, orders[sizes.rows], scales, sizes)
    return grad_q_NHK, grad_k_NHK, grad_v_NHK


@_backward.register_fake
def _(
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
    shape = q_NHK.shape
    return q_NHK.new_empty(shape), q_NHK.new_empty(shape), q_NHK.new_empty(shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_NHK, k_NHK, v_NHK, cu_seqlens, ctx.max_seqlen, ctx.scale = inputs
    ctx.save_for_backward(q_NHK, k_NHK, v_NHK, *output, cu_seqlens)
    ctx.set_materialize_grads(False)  # of the log-sum-exp, which nobody differentiates


def _gradients(ctx: Any, grad_NHK: Tensor, _: None) -> tuple[Tensor | None, ...]:
    grads = _backward(grad_NHK, *ctx.saved_tensors, ctx.max_seqlen, ctx.scale)
    return (*grads, None, None, None)


_forward.register_autograd(_gradients, setup_context=_setup_context)


def varlen_attention(
    q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> Tensor:
    """As ``cellfoundry_kernels.varlen``."""
    if scale < 0:  # the kernels scale a maximum
        q_NHK, scale = -q_NHK, -scale
    return _forward(q_NHK, k_NHK, v_NHK, cu_seqlens, max_seqlen, scale)[0]


def delta_constants(head_dim: int) -> dict[str, Any]:
    """What ``delta_kernel`` is compiled for."""
    return {"HEAD_DIM": head_dim, "BLOCK_M": DELTA_ROWS, "BLOCK_K": tile(head_dim)}


OTHER_TYPES = {"cu_seqlens_ptr": "*i32", "schedule_ptr": "*i64", "lse_ptr": "*fp32", "delta_ptr": "*fp32"}


def launch_of(
    kernel: Kernel, dtype: torch.dtype, head_dim: int, sizes: Tile, capabilities: tuple[int, ...] = (80, 90)
) -> Launch:
    """A launch as the compile test and the tuning script compile it."""
    values = constants(kernel, dtype, head_dim, sizes)
    other = OTHER_TYPES | {"scale": "fp32", "scale_log2": "fp32"}
    types = argument_types(KERNELS[kernel], dtype, values, other)
    shape = f"d{head_dim}-{TYPE_NAMES[dtype]}-{sizes.rows}x{sizes.columns}"
    aligned = ("q_stride", "k_stride", "v_stride")
    return Launch(
        f"varlen_attention-{kernel}-{shape}",
        KERNELS[kernel],
        types,
        values,
        sizes.options,
        aligned,
        capabilities,
    )


def published_launches() -> list[Launch]:
    """Every entry of the tables at the head dims that models use, and the small kernels around them.

    float16 takes bfloat16's tiles; at heads of 64, the published model's, it is compiled too.
    """
    found = [
        launch_of(kernel, torch.bfloat16, head_dim, sizes, (capability,))
        for (capability, kernel), entries in HALF.items()
        for head_dim, sizes in entries.items()
    ]
    found += [
        launch_of(kernel, torch.bfloat16, head_dim, SHORT) for kernel in KERNELS for head_dim in (32, 64)
    ]
    found += [
        launch_of(kernel, torch.float16, 64, entries[64], (capability,))
        for (capability, kernel), entries in HALF.items()
    ]
    found += [
        launch_of(kernel, torch.float32, head_dim, sizes)
        for kernel in KERNELS
        for head_dim, sizes in (SINGLE | {16: SINGLE[32]}).items()
    ]
    for head_dim in (32, 64, 128):
        values = delta_constants(head_dim)
        types = argument_types(delta_kernel, torch.bfloat16, values, OTHER_TYPES)
        name = f"varlen_attention-delta-d{head_dim}-bf16"
        found.append(Launch(name, delta_kernel, types, values, DELTA_OPTIONS))
    return [*found, published_schedule(128)]
