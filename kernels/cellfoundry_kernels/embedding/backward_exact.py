"""Backward of the value embedding in float32: plain torch, a few thousand tokens at a time.

Float32 products without tf32 run on the plain cores, where the kernels' tiles (128 x 128 bins) spill registers
and torch's matrix products serve better. Shares exist for ``CHUNK`` tokens at a time.

Shape legend: as in forward.py; C the columns of both packed layers' gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cellfoundry_kernels.embedding.forward import PARTS
from cellfoundry_kernels.embedding.reference import LEAKY_SLOPE

CHUNK = 16_384


def _hidden_and_shares(
    value_N1: Tensor, lse_N: Tensor, affine_BK: Tensor, mix_BI: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """Activations (1 in the spare bins) and shares (0 there, and where ``lse`` is +inf), (N, B)."""
    hidden_NI = F.leaky_relu(value_N1 * affine_BK[:, 0] + affine_BK[:, 3], LEAKY_SLOPE)
    share_NB = (hidden_NI @ mix_BI.T + alpha * hidden_NI).softmax(1)
    # Shares from ``lse`` would not add up to 1 exactly, which a saturated softmax's gradient magnifies tenfold.
    return hidden_NI, torch.where(lse_N[:, None] == torch.inf, 0.0, share_NB)


def backward_bins(
    grad_ND: Tensor,
    value_N: Tensor,
    lse_N: Tensor,
    affine_BK: Tensor,
    mix_BI: Tensor,
    table_RD: Tensor,
    alpha: float,
    need_value: bool,
) -> tuple[Tensor, Tensor]:
    """As ``backward.backward_bins``."""
    block_b = len(mix_BI)
    sums_BC = lse_N.new_zeros(block_b, block_b + PARTS)
    grad_mix_BI, grad_affine_BK = sums_BC.split([block_b, PARTS], 1)
    grad_value_N = lse_N.new_empty(len(value_N) if need_value else 0)
    table_BD = F.pad(table_RD, (0, 0, 0, block_b - len(table_RD)))
    for start in range(0, len(value_N), CHUNK):
        chunk = slice(start, start + CHUNK)
        value_N1 = value_N[chunk, None].float()
        hidden_NI, share_NB = _hidden_and_shares(value_N1, lse_N[chunk], affine_BK, mix_BI, alpha)
        grad_share_NB = share_NB * (grad_ND[chunk] @ table_BD.T)
        grad_logits_NB = grad_share_NB - share_NB * grad_share_NB.sum(1, keepdim=True)
        grad_hidden_NI = grad_logits_NB @ mix_BI + alpha * grad_logits_NB
        grad_hidden_NI = torch.where(hidden_NI > 0, grad_hidden_NI, LEAKY_SLOPE * grad_hidden_NI)
        grad_mix_BI += grad_logits_NB.T @ hidden_NI
        grad_affine_BK[:, 0] += value_N1[:, 0] @ grad_hidden_NI
        grad_affine_BK[:, 3] += grad_hidden_NI.sum(0)
        if need_value:
            grad_value_N[chunk] = grad_hidden_NI @ affine_BK[:, 0]
    return sums_BC, grad_value_N


def backward_table(
    grad_ND: Tensor,
    value_N: Tensor,
    lse_N: Tensor,
    affine_BK: Tensor,
    mix_BI: Tensor,
    alpha: float,
    token_ids: tuple[float, float],
    bins: int,
    rows: int,
) -> Tensor:
    """As ``backward.backward_table``."""
    grad_RD = grad_ND.new_zeros(rows, grad_ND.shape[1])
    for start in range(0, len(value_N), CHUNK):
        chunk = slice(start, start + CHUNK)
        value_N1 = value_N[chunk, None].float()
        _, share_NB = _hidden_and_shares(value_N1, lse_N[chunk], affine_BK, mix_BI, alpha)
        if rows > bins:
            mask_id, pad_id = token_ids
            is_pad_N = value_N1[:, 0] == pad_id
            share_NB[:, bins] = ((value_N1[:, 0] == mask_id) & ~is_pad_N).float()
            share_NB[:, bins + 1] = is_pad_N.float()
        grad_RD += share_NB[:, :rows].T @ grad_ND[chunk]
    return grad_RD
