"""Soft discretization in plain torch: the twin of the kernel, and the CPU path.

Shape legend: N tokens, D width, B bins.
"""

from __future__ import annotations

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
) -> Tensor:
    """Soft discretization of a scalar, then the weighted sum of the bins' embeddings."""
    # The product promotes to float32 where weights are half precision: a scalar keeps its digits until here.
    hidden_NB = F.leaky_relu(value_N[:, None] * mlp_weight_B1[:, 0] + mlp_bias_B, LEAKY_SLOPE)
    hidden_NB = hidden_NB.to(mlp2_weight_BB.dtype)
    logits_NB = F.linear(hidden_NB, mlp2_weight_BB, mlp2_bias_B) + alpha * hidden_NB
    return logits_NB.softmax(-1) @ table_BD
