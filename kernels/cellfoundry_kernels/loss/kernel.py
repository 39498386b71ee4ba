"""Mean squared error in two launches: sums of tiles, then the sum of those sums in one program.

The order of every sum is fixed, so equal inputs give equal bits. Bound by memory: 8 bytes a position in float32.

Shape legend: X chosen positions, T tiles of positions; kernel tiles: B positions or sums.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cellfoundry_kernels.launch import TYPE_NAMES, Launch, LaunchOptions, argument_types, registered_op

TILE = {"BLOCK_B": 1024}
OPTIONS: LaunchOptions = {"num_warps": 4, "num_stages": 2}


@triton.jit
def _difference(left_ptr, right_ptr, position_B, is_position_B):
    """Left minus right in float32; 0 outside."""
    left_B = tl.load(left_ptr + position_B, mask=is_position_B, other=0.0).to(tl.float32)
    right_B = tl.load(right_ptr + position_B, mask=is_position_B, other=0.0).to(tl.float32)
    return left_B - right_B


@triton.jit(do_not_specialize=["positions"])
def forward_kernel(prediction_ptr, target_ptr, sum_ptr, positions, BLOCK_B: tl.constexpr) -> None:
    """Sum of squared differences of one tile."""
    position_B = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    difference_B = _difference(prediction_ptr, target_ptr, position_B, position_B < positions)
    tl.store(sum_ptr + tl.program_id(0), tl.sum(difference_B * difference_B))


@triton.jit(do_not_specialize=["positions", "sums"])
def mean_kernel(sum_ptr, loss_ptr, positions, sums, BLOCK_B: tl.constexpr) -> None:
    """Sum of the sums over the number of positions; a single program."""
    total_B = tl.zeros([BLOCK_B], tl.float32)
    for start in range(0, sums, BLOCK_B):
        index_B = start + tl.arange(0, BLOCK_B)
        total_B += tl.load(sum_ptr + index_B, mask=index_B < sums, other=0.0)
    tl.store(loss_ptr, tl.sum(total_B) / positions)


@triton.jit(do_not_specialize=["positions"])
def backward_kernel(grad_ptr, left_ptr, right_ptr, out_ptr, positions, BLOCK_B: tl.constexpr) -> None:
    """Gradient of the left argument: 2 (left - right) grad / positions."""
    position_B = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    is_position_B = position_B < positions
    scale = tl.load(grad_ptr) * 2.0 / positions
    grad_B = _difference(left_ptr, right_ptr, position_B, is_position_B) * scale
    tl.store(out_ptr + position_B, grad_B.to(out_ptr.dtype.element_ty), mask=is_position_B)


@registered_op("masked_mse")
def masked_mse(prediction_X: Tensor, target_X: Tensor) -> Tensor:
    """As ``cellfoundry_kernels.loss``."""
    positions = prediction_X.numel()
    tiles = triton.cdiv(positions, TILE["BLOCK_B"])
    if tiles == 0:
        return torch.zeros((), dtype=torch.float32, device=prediction_X.device)
    sum_T = torch.empty(tiles, dtype=torch.float32, device=prediction_X.device)
    loss = sum_T.new_empty(())
    forward_kernel[(tiles,)](
        prediction_X.contiguous(), target_X.contiguous(), sum_T, positions, **TILE, **OPTIONS
    )
    mean_kernel[(1,)](sum_T, loss, positions, tiles, **TILE, **OPTIONS)
    return loss


@masked_mse.register_fake
def _(prediction_X: Tensor, target_X: Tensor) -> Tensor:
    return prediction_X.new_empty((), dtype=torch.float32)


@registered_op("masked_mse_backward")
def masked_mse_backward(grad: Tensor, left_X: Tensor, right_X: Tensor) -> Tensor:
    """Gradient of the left argument in its dtype; the loss is symmetric, so either argument may be the left one."""
    grad_X = torch.empty(left_X.shape, dtype=left_X.dtype, device=left_X.device)
    positions = grad_X.numel()
    if positions:
        backward_kernel[(triton.cdiv(positions, TILE["BLOCK_B"]),)](
            grad, left_X.contiguous(), right_X.contiguous(), grad_X, positions, **TILE, **OPTIONS
        )
    return grad_X


@masked_mse_backward.register_fake
def _(grad: Tensor, left_X: Tensor, right_X: Tensor) -> Tensor:
    return left_X.new_empty(left_X.shape)


def _save(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    prediction_X, target_X = ctx.saved_tensors
    need_prediction, need_target = ctx.needs_input_grad
    return (
        masked_mse_backward(grad, prediction_X, target_X) if need_prediction else None,
        masked_mse_backward(grad, target_X, prediction_X) if need_target else None,
    )


masked_mse.register_autograd(_backward, setup_context=_save)


def published_launches() -> list[Launch]:
    """What runs on float32 and bf16 predictions; targets are float32."""
    other = dict.fromkeys(("target_ptr", "right_ptr", "sum_ptr", "grad_ptr", "loss_ptr"), "*fp32")
    chosen = [
        (kernel, dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for kernel in (forward_kernel, backward_kernel)
    ]
    return [
        Launch(
            f"masked_mse-{kernel.fn.__name__}-{TYPE_NAMES[dtype]}",
            kernel,
            argument_types(kernel, dtype, TILE, other),
            TILE,
            OPTIONS,
        )
        for kernel, dtype in [*chosen, (mean_kernel, torch.float32)]
    ]
