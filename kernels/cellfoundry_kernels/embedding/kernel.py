"""Soft discretization of scalars in one pass: the (tokens x bins) weights stay in registers.

Shape legend: N tokens, B bins, I a slice of the input bins of mlp2, D width; kernel tiles carry the same letters.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cellfoundry_kernels.embedding import reference
from cellfoundry_kernels.launch import TYPE_NAMES, Launch, LaunchOptions, argument_types, dot_precision, tile

Parameters = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@triton.jit
def _hidden(value_N, mlp_weight_ptr, mlp_bias_ptr, bin_I, bins):
    """Activations of the given bins, 0 beyond the last one; cheaper to compute twice than to keep."""
    weight_I = tl.load(mlp_weight_ptr + bin_I, mask=bin_I < bins, other=0.0).to(tl.float32)
    bias_I = tl.load(mlp_bias_ptr + bin_I, mask=bin_I < bins, other=0.0).to(tl.float32)
    hidden_NI = value_N[:, None] * weight_I[None, :] + bias_I[None, :]
    return tl.where(hidden_NI > 0, hidden_NI, 0.1 * hidden_NI)


@triton.jit
def forward_kernel(
    value_ptr,
    mlp_weight_ptr,
    mlp_bias_ptr,
    mlp2_weight_ptr,
    mlp2_bias_ptr,
    table_ptr,
    out_ptr,
    alpha,
    tokens,
    bins,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One program embeds ``BLOCK_N`` scalars, ``BLOCK_D`` columns of the width at a time."""
    token_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    bin_B = tl.arange(0, BLOCK_B)
    is_token_N1 = (token_N < tokens)[:, None]
    is_bin_B = bin_B < bins

    value_N = tl.load(value_ptr + token_N, mask=token_N < tokens, other=0.0).to(tl.float32)
    logits_NB = tl.zeros([BLOCK_N, BLOCK_B], tl.float32)
    # mlp2 sums over input bins, a slice I at a time: a whole (bins x bins) weight does not fit the registers.
    for first in range(0, BLOCK_B, BLOCK_I):
        bin_I = first + tl.arange(0, BLOCK_I)
        hidden_NI = _hidden(value_N, mlp_weight_ptr, mlp_bias_ptr, bin_I, bins)
        # The weight is (out, in); read as (in, out).
        mlp2_weight_IB = tl.load(
            mlp2_weight_ptr + bin_B[None, :] * bins + bin_I[:, None],
            mask=is_bin_B[None, :] & (bin_I < bins)[:, None],
            other=0.0,
        )
        logits_NB += tl.dot(hidden_NI.to(mlp2_weight_IB.dtype), mlp2_weight_IB, input_precision=PRECISION)
    mlp2_bias_B = tl.load(mlp2_bias_ptr + bin_B, mask=is_bin_B, other=0.0).to(tl.float32)
    hidden_NB = _hidden(value_N, mlp_weight_ptr, mlp_bias_ptr, bin_B, bins)
    logits_NB += mlp2_bias_B[None, :] + alpha * hidden_NB
    logits_NB = tl.where(is_bin_B[None, :], logits_NB, float("-inf"))
    share_NB = tl.exp(logits_NB - tl.max(logits_NB, 1)[:, None])
    share_NB = share_NB / tl.sum(share_NB, 1)[:, None]

    for first in range(0, width, BLOCK_D):
        column_D = first + tl.arange(0, BLOCK_D)
        is_column_1D = (column_D < width)[None, :]
        table_BD = tl.load(
            table_ptr + bin_B[:, None] * width + column_D[None, :],
            mask=is_bin_B[:, None] & is_column_1D,
            other=0.0,
        )
        out_ND = tl.dot(share_NB.to(table_BD.dtype), table_BD, input_precision=PRECISION)
        # 64 bit: tokens x width passes 2^31.
        out_offset_ND = token_N[:, None].to(tl.int64) * width + column_D[None, :]
        tl.store(
            out_ptr + out_offset_ND, out_ND.to(out_ptr.dtype.element_ty), mask=is_token_N1 & is_column_1D
        )


def tiles(dtype: torch.dtype, bins: int) -> dict[str, Any]:
    """Tile sizes of the kernel; float32 products run on the plain cores and need smaller ones."""
    exact = dtype == torch.float32
    return {
        "BLOCK_N": 16 if exact else 64,
        "BLOCK_B": tile(bins),
        "BLOCK_I": 16 if exact else min(32, tile(bins)),
        "BLOCK_D": 16 if exact else 64,
        "PRECISION": dot_precision(dtype),
    }


def options() -> LaunchOptions:
    """Launch options of the kernel."""
    return {"num_warps": 4, "num_stages": 2}


def forward(inputs: Parameters, alpha: float) -> Tensor:
    """Launch the kernel over all tokens."""
    value_N, table_BD = inputs[0], inputs[-1]
    bins, width = table_BD.shape
    out_ND = table_BD.new_empty(len(value_N), width)
    blocks = tiles(table_BD.dtype, bins)
    grid = (triton.cdiv(len(value_N), blocks["BLOCK_N"]),)
    if grid[0]:
        contiguous = (x.contiguous() for x in inputs)
        forward_kernel[grid](*contiguous, out_ND, alpha, len(value_N), bins, width, **blocks, **options())
    return out_ND


class _ValueEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, alpha: float, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.alpha = alpha
        return forward(inputs, alpha)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        # Recomputed with the reference: its (tokens x bins) maps live only for this call.
        needed = ctx.needs_input_grad[1:]
        inputs = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            out_ND = reference.value_embedding(*inputs, alpha=ctx.alpha)  # type: ignore[misc]
            grads = iter(torch.autograd.grad(out_ND, [x for x in inputs if x.requires_grad], grad_ND))
        return (None, *(next(grads) if need else None for need in needed))


def value_embedding(inputs: Parameters, alpha: float) -> Tensor:
    """As ``cellfoundry_kernels.embedding``; ``inputs`` are its tensors in order."""
    return _ValueEmbedding.apply(alpha, *inputs)


def published_launches() -> list[Launch]:
    """What runs at 100 bins."""
    other = {"value_ptr": "*fp32", "alpha": "fp32"}
    return [
        Launch(
            f"value_embedding-forward-bins100-{TYPE_NAMES[dtype]}",
            forward_kernel,
            argument_types(forward_kernel, dtype, tiles(dtype, 100), other),
            tiles(dtype, 100),
            options(),
            ("width",),
        )
        for dtype in (torch.float32, torch.bfloat16)
    ]
