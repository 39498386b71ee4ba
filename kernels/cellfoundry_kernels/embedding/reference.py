"""Soft discretization in plain torch: the twin of the kernels, and the CPU path.

Shape legend: N tokens, D width, B bins, P positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAKY_SLOPE = 0.1


def value_embedding(
    value_N: Tensor,
    mlp_weight_B1: Tensor,
    mlp_bias_B: Tensor,
    mlp2_weight_BB: Tensor,
    mlp2_bias_B: Tensor,
    table_BD: Tensor,
    alpha: float,
    *,
    mask_1D: Tensor | None = None,
    pad_1D: Tensor | None = None,
    mask_token_id: float = 0.0,
    pad_token_id: float = 0.0,
    position_table_PD: Tensor | None = None,
    position_N: Tensor | None = None,
) -> Tensor:
    """Soft discretization of a scalar, the weighted sum of the bins' embeddings, then the position's."""
    # The product promotes to float32 where weights are half precision: a scalar keeps its digits until here.
    hidden_NB = F.leaky_relu(value_N[:, None] * mlp_weight_B1[:, 0] + mlp_bias_B, LEAKY_SLOPE)
    hidden_NB = hidden_NB.to(mlp2_weight_BB.dtype)
    logits_NB = F.linear(hidden_NB, mlp2_weight_BB, mlp2_bias_B) + alpha * hidden_NB
    out_ND = logits_NB.softmax(-1) @ table_BD
    if mask_1D is not None:
        out_ND = torch.where(value_N[:, None] == mask_token_id, mask_1D.to(out_ND.dtype), out_ND)
    if pad_1D is not None:
        out_ND = torch.where(value_N[:, None] == pad_token_id, pad_1D.to(out_ND.dtype), out_ND)
    if position_table_PD is not None and position_N is not None:
        out_ND = out_ND + F.embedding(position_N, position_table_PD)
    return out_ND
