"""Scalars to vectors by soft discretization: the public op.

Shape legend: N tokens, D width, B bins, P positions.
"""

from __future__ import annotations

import torch
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
    *,
    mask_1D: Tensor | None = None,
    pad_1D: Tensor | None = None,
    mask_token_id: float = 0.0,
    pad_token_id: float = 0.0,
    position_table_PD: Tensor | None = None,
    position_N: Tensor | None = None,
) -> Tensor:
    """Embed scalars through a soft discretization into bins (xTrimoGene's "auto-discretization").

    ``h = leaky_relu_0.1(mlp(v)); w = softmax(mlp2(h) + alpha * h); out = w @ table + position_table[position]``.
    A value equal to ``mask_token_id`` or ``pad_token_id`` takes ``mask_1D`` or ``pad_1D`` instead of ``w @ table``
    (pad where both are equal).

    The kernels are used up to 127 bins (126 with mask and pad rows), the reference beyond: the gradient of 256 x 256
    bins alone would fill a processor's registers. Forward keeps the shares ``w`` on the processor. Backward writes them
    once, 256 bytes a token for the time of the call (backward.py says why), and its gradients never; in float32 it is
    torch's, because the kernels spill there (backward_exact.py).

    Forward takes 2 N B (B + D) FLOPs and writes N D elements, backward takes 2 N B (3 B + 2 D) and reads them: at
    128,000 tokens, 100 bins and width 768 in bf16 28 and 60 us of products at 790 TFLOP/s, 46 and 46 us of memory at
    4.3 TB/s, together 92 us at least. What the kernels take there, by arithmetic and not by a clock: tiles hold 128
    bins, so their products are 38 and 82 us. Forward is 46 us of memory, and 8 of a softmax that nothing hides.
    Backward is 8 us of shares, 76 of products with 9 of what surrounds them, and 5 of partial sums, with the gradient
    read once from memory and once from the L2 cache; 107 us of memory instead of those 85 if the cache keeps
    none of it. That is 60 % of the roofline, or 53 %. A position table's gradient reads once more.

    Args:
        value_N: float values, (N,); float32 keeps their digits whatever the weights' dtype.
        mlp_weight_B1: Weight of Linear(1, B), (B, 1); fp32, fp16, bf16 (fp64 with the reference). The weights'
            dtype, one for all of them, is the result's.
        mlp_bias_B: Its bias, (B,).
        mlp2_weight_BB: Weight of Linear(B, B), (out, in).
        mlp2_bias_B: Its bias, (B,).
        table_BD: One embedding a bin, (B, D).
        alpha: Weight of the skip connection into the logits.
        mask_1D: Embedding of a mask value, (1, D); together with ``pad_1D``.
        pad_1D: Embedding of a pad value, (1, D).
        mask_token_id: The mask value.
        pad_token_id: The pad value.
        position_table_PD: One embedding a position, (P, D); together with ``position_N``.
        position_N: Position of each token, int64 (N,), in [0, P). Outside the reference raises, the kernel
            gives NaN.

    Returns:
        (N, D).

    Raises:
        ValueError: One of a pair of arguments is missing.
    """
    if (mask_1D is None) != (pad_1D is None):
        raise ValueError("value_embedding: mask_1D and pad_1D belong together; give both or neither.")
    if (position_table_PD is None) != (position_N is None):
        raise ValueError(
            "value_embedding: position_table_PD and position_N belong together; give both or neither."
        )
    weights = (mlp_weight_B1, mlp_bias_B, mlp2_weight_BB, mlp2_bias_B)
    if use_triton(table_BD):
        from cellfoundry_kernels.embedding import kernel

        own = [] if mask_1D is None or pad_1D is None else [mask_1D, pad_1D]
        rows = len(table_BD) + len(own)
        if kernel.fits(len(table_BD), rows):
            table_RD = (
                torch.cat([table_BD, *(row_1D.to(table_BD.dtype) for row_1D in own)]) if own else table_BD
            )
            token_ids = (float(mask_token_id), float(pad_token_id))
            return kernel.value_embedding(
                value_N, *weights, table_RD, alpha, position_table_PD, position_N, token_ids
            )
    return reference.value_embedding(
        value_N,
        *weights,
        table_BD,
        alpha,
        mask_1D=mask_1D,
        pad_1D=pad_1D,
        mask_token_id=mask_token_id,
        pad_token_id=pad_token_id,
        position_table_PD=position_table_PD,
        position_N=position_N,
    )
