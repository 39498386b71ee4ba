"""The value embedding as registered ops: one forward, and a backward in two independent parts.

The first part takes the discretisation's weights, the table and the values together (backward.py, in float32
backward_exact.py). The gradient of the position table is torch's ``embedding_dense_backward``, which sorts the tokens
by position and reads the output's gradient once more. It adds nothing atomically, and a kernel of ours could save no
byte of it: the first part needs the gradient in the tokens' order.

Shape legend: as in forward.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cellfoundry_kernels.embedding import backward, backward_exact, forward
from cellfoundry_kernels.launch import (
    TYPE_NAMES,
    Launch,
    LaunchOptions,
    argument_types,
    registered_op,
)

# The gradient of mlp2 stays in a processor's registers, which 256 x 256 bins in float32 would fill alone (256 KiB).
BINS_LIMIT = 128


def fits(bins: int, rows: int) -> bool:
    """Whether the kernels take so many bins; else the reference does."""
    return forward.block_of_bins(bins, rows) <= BINS_LIMIT


@registered_op("value_embedding")
def _forward(
    value_N: Tensor,
    mlp_weight_B1: Tensor,
    mlp_bias_B: Tensor,
    mlp2_weight_BB: Tensor,
    mlp2_bias_B: Tensor,
    table_RD: Tensor,
    position_table_PD: Tensor | None,
    position_N: Tensor | None,
    alpha: float,
    mask_token_id: float,
    pad_token_id: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, and what backward takes up again: the two packed layers."""
    bins = len(mlp_bias_B)
    block_b = forward.block_of_bins(bins, len(table_RD))
    affine_BK, mix_BI = forward.pack(mlp_weight_B1, mlp_bias_B, mlp2_weight_BB, mlp2_bias_B, block_b)
    token_ids = (mask_token_id, pad_token_id)
    out_ND = forward.forward(
        value_N, affine_BK, mix_BI, table_RD, position_table_PD, position_N, alpha, token_ids, bins
    )
    return out_ND, affine_BK, mix_BI


@_forward.register_fake
def _(
    value_N: Tensor,
    mlp_weight_B1: Tensor,
    mlp_bias_B: Tensor,
    mlp2_weight_BB: Tensor,
    mlp2_bias_B: Tensor,
    table_RD: Tensor,
    position_table_PD: Tensor | None,
    position_N: Tensor | None,
    alpha: float,
    mask_token_id: float,
    pad_token_id: float,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, block_b = len(value_N), forward.block_of_bins(len(mlp_bias_B), len(table_RD))
    return (
        table_RD.new_empty(tokens, table_RD.shape[1]),
        table_RD.new_empty(block_b, forward.PARTS),
        table_RD.new_empty(block_b, block_b),
    )


@registered_op("value_embedding_backward")
def _backward(
    grad_ND: Tensor,
    value_N: Tensor,
    affine_BK: Tensor,
    mix_BI: Tensor,
    table_RD: Tensor,
    alpha: float,
    mask_token_id: float,
    pad_token_id: float,
    bins: int,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``backward.backward``."""
    module = backward_exact if table_RD.dtype == torch.float32 else backward
    token_ids = (mask_token_id, pad_token_id)
    return module.backward(grad_ND, value_N, affine_BK, mix_BI, table_RD, alpha, token_ids, bins, need_value)


@_backward.register_fake
def _(
    grad_ND: Tensor,
    value_N: Tensor,
    affine_BK: Tensor,
    mix_BI: Tensor,
    table_RD: Tensor,
    alpha: float,
    mask_token_id: float,
    pad_token_id: float,
    bins: int,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    block_b = len(mix_BI)
    shapes = ((block_b, block_b + forward.PARTS), table_RD.shape, (len(value_N) if need_value else 0,))
    sums_BC, grad_RD, grad_value_N = (grad_ND.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return sums_BC, grad_RD, grad_value_N


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    value_N, _, mlp_bias_B, _, _, table_RD, position_table_PD, position_N, *ctx.scalars = inputs
    _, affine_BK, mix_BI = output
    ctx.bins = len(mlp_bias_B)
    ctx.positions = 0 if position_table_PD is None else len(position_table_PD)
    ctx.save_for_backward(value_N, affine_BK, mix_BI, table_RD, position_N)


def _gradients(ctx: Any, grad_ND: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    value_N, affine_BK, mix_BI, table_RD, position_N = ctx.saved_tensors
    need_value, bins, dtype = ctx.needs_input_grad[0], ctx.bins, table_RD.dtype
    grads: list[Tensor | None] = [None] * 7
    if any(ctx.needs_input_grad[:6]):
        sums_BC, grad_RD, grad_value_N = _backward(
            grad_ND, value_N, affine_BK, mix_BI, table_RD, *ctx.scalars, bins, need_value
        )
        grad_mix_BI, grad_affine_BK = sums_BC[:bins].split([len(mix_BI), forward.PARTS], 1)
        grads[0] = grad_value_N.to(value_N.dtype) if need_value else None
        # The three parts of a scalar multiply the same weight.
        grads[1] = grad_affine_BK[:, :3].sum(1, keepdim=True).to(dtype)
        grads[2] = grad_affine_BK[:, 3].to(dtype, copy=True)
        grads[3] = grad_mix_BI[:, :bins].to(dtype, copy=True)
        grads[4] = grad_mix_BI[:, bins].to(dtype, copy=True)
        grads[5] = grad_RD.to(dtype)
    if ctx.needs_input_grad[6]:
        grads[6] = torch.ops.aten.embedding_dense_backward(grad_ND, position_N, ctx.positions, -1, False)
    return (*grads, None, None, None, None)


_forward.register_autograd(_gradients, setup_context=_setup_context)


def value_embedding(
    value_N: Tensor,
    mlp_weight_B1: Tensor,
    mlp_bias_B: Tensor,
    mlp2_weight_BB: Tensor,
    mlp2_bias_B: Tensor,
    table_RD: Tensor,
    alpha: float,
    position_table_PD: Tensor | None,
    position_N: Tensor | None,
    token_ids: tuple[float, float],
) -> Tensor:
    """As ``cellfoundry_kernels.embedding``; behind the bins' rows the table holds those of mask and pad, if any."""
    weights = (mlp_weight_B1, mlp_bias_B, mlp2_weight_BB, mlp2_bias_B, table_RD)
    return _forward(value_N, *weights, position_table_PD, position_N, alpha, *token_ids)[0]


def published_launches() -> list[Launch]:
    """What runs at 100 bins, with mask and pad rows, and with positions."""
    block_b, exact, half = forward.block_of_bins(100, 102), torch.float32, torch.bfloat16
    position = {"HAS_POSITION": True}
    found = [
        _launch(forward.pack_kernel, dtype, {"BLOCK_B": block_b}, forward.PACK_OPTIONS)
        for dtype in (exact, half)
    ]
    tiles = backward.shares_tiles(half, block_b)
    found.append(_launch(backward.shares_kernel, half, tiles, backward.SHARES_OPTIONS))
    for capability in (80, 90):
        alone = (capability,)
        for dtype in (exact, half):
            tiles = forward.forward_tiles(dtype, block_b, capability) | position
            options = forward.forward_options(dtype, capability)
            found.append(_launch(forward.forward_kernel, dtype, tiles, options, alone))
        options = backward.backward_options(capability)
        for need_value in (False, True):
            tiles = backward.backward_tiles(half, block_b, capability, need_value)
            found.append(_launch(backward.backward_kernel, half, tiles, options, alone))
    return found


def _launch(
    kernel: Any,
    dtype: torch.dtype,
    tiles: dict[str, Any],
    options: LaunchOptions,
    capabilities: tuple[int, ...] = (80, 90),
) -> Launch:
    other = dict.fromkeys(("alpha", "mask_token_id", "pad_token_id", "lowest"), "fp32")
    other |= dict.fromkeys(("value_ptr", "grad_value_ptr", "partial_bins_ptr", "partial_table_ptr"), "*fp32")
    types = argument_types(kernel, dtype, tiles, other | {"position_ptr": "*i64"})
    values = "-values" if tiles.get("NEED_VALUE") else ""
    name = f"value_embedding-{kernel.fn.__name__}-bins100{values}-{TYPE_NAMES[dtype]}"
    return Launch(name, kernel, types, tiles, options, ("width",), capabilities)
