"""Pooling of ragged cells in plain torch: the twin of the kernel, and the CPU path.

A registered op, so that the loop over cells is opaque to ``torch.compile`` and ``torch.export``.

Shape legend: N tokens over all cells, n of one cell, C cells, D width, P pooled width (4 D or D); cell ``c`` owns
tokens ``cu_seqlens[c]:cu_seqlens[c + 1]``.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor


def pool_cells(x_ND: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    """As ``cellfoundry_kernels.pooling``, for a known mode."""
    return _forward(x_ND, cu_seqlens, mode == "all")


@torch.library.custom_op("cellfoundry::pool_cells_reference", mutates_args=())
def _forward(x_ND: Tensor, cu_seqlens: Tensor, pool_all: bool) -> Tensor:
    """Cell by cell (C, P): torch.segment_reduce takes 10 times as long."""
    out_CP = _new_pooled(x_ND, cu_seqlens, pool_all)
    for out_P, (first, last) in zip(out_CP, itertools.pairwise(cu_seqlens.tolist()), strict=True):
        x_nD = x_ND[first:last]
        if len(x_nD) <= 2:
            out_P.fill_(torch.nan)
        elif pool_all:
            genes_nD = x_nD[:-2]
            # A half precision accumulator would lose the mean of thousands of tokens.
            wide = torch.promote_types(x_nD.dtype, torch.float32)
            mean_D = genes_nD.mean(0, dtype=wide).to(x_nD.dtype)
            torch.cat([x_nD[-1], x_nD[-2], genes_nD.amax(0), mean_D], out=out_P)
        else:
            torch.amax(x_nD, 0, out=out_P)
    return out_CP


@_forward.register_fake
def _new_pooled(x_ND: Tensor, cu_seqlens: Tensor, pool_all: bool) -> Tensor:
    return x_ND.new_empty(cu_seqlens.shape[0] - 1, x_ND.shape[1] * (4 if pool_all else 1))


@torch.library.custom_op("cellfoundry::pool_cells_reference_backward", mutates_args=())
def _backward(grad_CP: Tensor, x_ND: Tensor, cu_seqlens: Tensor, pool_all: bool) -> Tensor:
    """Gradient of the tokens, (N, D); places of maxima are found here, as they take 10 times as long as maxima."""
    grad_ND = torch.empty_like(x_ND, memory_format=torch.contiguous_format)
    for grad_P, (first, last) in zip(grad_CP, itertools.pairwise(cu_seqlens.tolist()), strict=True):
        x_nD, grad_nD = x_ND[first:last], grad_ND[first:last]
        if len(x_nD) <= 2:
            grad_nD.zero_()
            continue
        if pool_all:
            grad_nD[-1], grad_nD[-2], grad_max_D, grad_mean_D = grad_P.view(4, -1)
            x_nD, grad_nD = x_nD[:-2], grad_nD[:-2]
            grad_nD[:] = grad_mean_D / len(x_nD)
        else:
            grad_max_D = grad_P
            grad_nD.zero_()
        grad_nD.scatter_add_(0, x_nD.max(0, keepdim=True).indices, grad_max_D[None])
    return grad_ND


@_backward.register_fake
def _(grad_CP: Tensor, x_ND: Tensor, cu_seqlens: Tensor, pool_all: bool) -> Tensor:
    return torch.empty_like(x_ND, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    x_ND, cu_seqlens, ctx.pool_all = inputs
    ctx.save_for_backward(x_ND, cu_seqlens)


def _gradients(ctx: Any, grad_CP: Tensor) -> tuple[Tensor, None, None]:
    return _backward(grad_CP.contiguous(), *ctx.saved_tensors, ctx.pool_all), None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)
