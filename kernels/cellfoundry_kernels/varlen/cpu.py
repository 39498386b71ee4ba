"""Attention over packed cells on a CPU: torch's flash kernel once a cell, in one registered op over all of them.

As one op, the loop over cells is opaque to ``torch.compile`` and ``torch.export``, and each gradient is written once;
autograd through slices would fill and add a gradient of all N tokens for every cell.

Shape legend: N tokens over all cells, C cells, H heads, K head dim, n tokens of one cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Tokens up to which scores in memory pay in bfloat16: 12 heads x 64 take 3.4 ms at 370 tokens on an EPYC core where the
# flash kernel takes 6.2, and 51 ms at 1,000 where that takes 45.
SHORT_CELL = 512

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def varlen_attention(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """As ``cellfoundry_kernels.varlen``."""
    return _forward(q_NHK, k_NHK, v_NHK, cu_seqlens, scale)[0]


def varlen_attention_without_grad(
    q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor, scale: float
) -> Tensor:
    """As ``varlen_attention``, for inference: in bfloat16 short cells take two plain products, whose scores are rounded
    to bfloat16. That about doubles the error, to 0.5 % of the result.
    """
    if q_NHK.dtype != torch.bfloat16:
        return varlen_attention(q_NHK, k_NHK, v_NHK, cu_seqlens, scale)
    out_NHK = torch.empty_like(q_NHK, memory_format=torch.contiguous_format)
    for cell in _cells(cu_seqlens):
        q_1HnK, k_1HnK, v_1HnK = (_heads_first(x_NHK, cell) for x_NHK in (q_NHK, k_NHK, v_NHK))
        if cell.stop - cell.start <= SHORT_CELL:
            share_Hnn = (scale * q_1HnK[0] @ k_1HnK[0].mT).softmax(-1)
            out_HnK = share_Hnn @ v_1HnK[0]
        else:
            out_HnK = _flash(q_1HnK, k_1HnK, v_1HnK, scale=scale)[0][0]
        out_NHK[cell] = out_HnK.transpose(0, 1)
    return out_NHK


@torch.library.custom_op("cellfoundry::varlen_attention_cpu", mutates_args=(), device_types="cpu")
def _forward(
    q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (N, H, K) and log-sum-exp of the scaled logits (N, H), float32 at least."""
    out_NHK, lse_NH = _new_results(q_NHK)
    for cell in _cells(cu_seqlens):
        qkv = (_heads_first(x_NHK, cell) for x_NHK in (q_NHK, k_NHK, v_NHK))
        out_1HnK, lse_1Hn = _flash(*qkv, scale=scale)
        out_NHK[cell], lse_NH[cell] = out_1HnK[0].transpose(0, 1), lse_1Hn[0].T
    return out_NHK, lse_NH


@_forward.register_fake
def _(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _new_results(q_NHK)


@torch.library.custom_op("cellfoundry::varlen_attention_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_NHK: Tensor,
    q_NHK: Tensor,
    k_NHK: Tensor,
    v_NHK: Tensor,
    out_NHK: Tensor,
    lse_NH: Tensor,
    cu_seqlens: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, each (N, H, K)."""
    grads = _new_gradients(q_NHK)
    for cell in _cells(cu_seqlens):
        tensors = (_heads_first(x_NHK, cell) for x_NHK in (grad_NHK, q_NHK, k_NHK, v_NHK, out_NHK))
        found = _flash_backward(*tensors, lse_NH[cell].T[None], 0.0, False, scale=scale)
        for grad, found_1HnK in zip(grads, found, strict=True):
            grad[cell] = found_1HnK[0].transpose(0, 1)
    return grads


@_backward.register_fake
def _(grad_NHK, q_NHK, *rest):  # type: ignore[no-untyped-def]
    return _new_gradients(q_NHK)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_NHK, k_NHK, v_NHK, cu_seqlens, ctx.scale = inputs
    ctx.save_for_backward(q_NHK, k_NHK, v_NHK, *output, cu_seqlens)


def _gradients(ctx: Any, grad_NHK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(grad_NHK, *ctx.saved_tensors, ctx.scale), None, None)


_forward.register_autograd(_gradients, setup_context=_setup_context)


def _cells(cu_seqlens: Tensor) -> Iterator[slice]:
    """Tokens of each cell that has any."""
    return (slice(first, last) for first, last in itertools.pairwise(cu_seqlens.tolist()) if last > first)


def _heads_first(x_NHK: Tensor, cell: slice) -> Tensor:
    """One cell as (1, H, n, K), channels side by side as the flash kernel wants them."""
    x_1HnK = x_NHK[cell].transpose(0, 1)[None]
    return x_1HnK if x_1HnK.stride(3) == 1 else x_1HnK.contiguous()


def _new_results(q_NHK: Tensor) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = q_NHK.shape
    wide = torch.promote_types(q_NHK.dtype, torch.float32)
    return q_NHK.new_empty(q_NHK.shape), q_NHK.new_empty(tokens, heads, dtype=wide)


def _new_gradients(q_NHK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = q_NHK.shape
    return q_NHK.new_empty(shape), q_NHK.new_empty(shape), q_NHK.new_empty(shape)
