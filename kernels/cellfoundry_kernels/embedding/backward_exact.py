"""Backward of the value embedding in float32: plain torch, a few thousand tokens at a time.

Float32 products without tf32 run on the plain cores, with their operands in registers: even tiles of 16 tokens and
16 columns spill 3 to 6 KB a thread there (triton 3.7, H100). Torch's matrix products have no such trouble. Shares
exist for ``CHUNK`` tokens at a time.

Shape legend: as in backward.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cellfoundry_kernels.embedding.forward import PARTS
from cellfoundry_kernels.embedding.reference import LEAKY_SLOPE

CHUNK = 16_384


def backward(
    grad_ND: Tensor,
    value_N: Tensor,
    affine_BK: Tensor,
    mix_BI: Tensor,
    table_RD: Tensor,
    alpha: float,
    token_ids: tuple[float, float],
    bins: int,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``backward.backward``."""
    block_b, rows = len(mix_BI), len(table_RD)
    sums_BC = table_RD.new_zeros(block_b, block_b + PARTS)
    grad_mix_BI, grad_affine_BK = sums_BC.split([block_b, PARTS], 1)
    grad_RD = torch.zeros_like(table_RD)
    grad_value_N = table_RD.new_empty(len(value_N) if need_value else 0)
    for start in range(0, len(value_N), CHUNK):
        chunk = slice(start, start + CHUNK)
        value_N1 = value_N[chunk, None].float()
        # Spare bins are 1 here, and their shares 0.
        hidden_NI = F.leaky_relu(value_N1 * affine_BK[:, 0] + affine_BK[:, 3], LEAKY_SLOPE)
        share_NB = (hidden_NI @ mix_BI.T + alpha * hidden_NI).softmax(1)
        if rows > bins:
            mask_id, pad_id = token_ids
            is_pad_N1 = value_N1 == pad_id
            is_mask_N1 = (value_N1 == mask_id) & ~is_pad_N1
            share_NB.masked_fill_(is_pad_N1 | is_mask_N1, 0.0)
            share_NB[:, bins : bins + 2] += torch.cat([is_mask_N1, is_pad_N1], 1)
        share_NR = share_NB[:, :rows]
        grad_RD += share_NR.T @ grad_ND[chunk]
        grad_share_NR = share_NR * (grad_ND[chunk] @ table_RD.T)
        # A row of a mask or pad value's own has the whole share: the gradient of its logits is 0.
        grad_logits_NB = F.pad(grad_share_NR, (0, block_b - rows))
        grad_logits_NB -= share_NB * grad_share_NR.sum(1, keepdim=True)
        grad_hidden_NI = grad_logits_NB @ mix_BI + alpha * grad_logits_NB
        grad_hidden_NI = torch.where(hidden_NI > 0, grad_hidden_NI, LEAKY_SLOPE * grad_hidden_NI)
        grad_mix_BI += grad_logits_NB.T @ hidden_NI
        grad_affine_BK[:, 0] += value_N1[:, 0] @ grad_hidden_NI
        grad_affine_BK[:, 3] += grad_hidden_NI.sum(0)
        if need_value:
            grad_value_N[chunk] = grad_hidden_NI @ affine_BK[:, 0]
    return sums_BC, grad_RD, grad_value_N
