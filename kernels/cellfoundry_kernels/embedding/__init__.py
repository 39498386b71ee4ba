"""Scalars to vectors by soft discretization: the public op.

Shape legend: N tokens, D width, B bins.
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels.dispatch import use_triton
from cellfoundry_kernels.embedding import reference


def value_embedding(
    value_N: Tensor,
    mlp_weight_B1: Tensor,
    mlp_bias_B: Tensor,
    mlp2_weight_BB: Tensor,
    mlp2_bias_B: Tensor,
    table_BD: Tensor,
    alpha: float,
) -> Tensor:
    """Embed scalars through a soft discretization into bins (xTrimoGene's "auto-discretization").

    ``h = leaky_relu_0.1(mlp(v)); w = softmax(mlp2(h) + alpha * h); out = w @ table``. Replacing the embedding
    of mask and pad values is the caller's task.

    Args:
        value_N: float values, (N,).
        mlp_weight_B1: Weight of Linear(1, B), (B, 1); the weights' dtype is the result's.
        mlp_bias_B: Its bias, (B,).
        mlp2_weight_BB: Weight of Linear(B, B), (out, in).
        mlp2_bias_B: Its bias, (B,).
        table_BD: One embedding a bin, (B, D).
        alpha: Weight of the skip connection into the logits.

    Returns:
        (N, D). Forward FLOPs 2 N B (B + D); bytes at least N (1 + D) elements.
    """
    inputs = (value_N, mlp_weight_B1, mlp_bias_B, mlp2_weight_BB, mlp2_bias_B, table_BD)
    if use_triton(table_BD):
        from cellfoundry_kernels.embedding.kernel import value_embedding as twin

        return twin(inputs, alpha)
    return reference.value_embedding(*inputs, alpha=alpha)
