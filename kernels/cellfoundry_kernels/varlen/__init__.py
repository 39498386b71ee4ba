"""Attention among the tokens of each packed cell: the public op.

Shape legend: N tokens over all cells, C cells, H heads, K head dim. Cell ``c`` owns tokens
``cu_seqlens[c]:cu_seqlens[c + 1]``.
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels.dispatch import use_triton
from cellfoundry_kernels.varlen import reference


def varlen_attention(
    q_NHK: Tensor,
    k_NHK: Tensor,
    v_NHK: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None = None,
) -> Tensor:
    """Full softmax attention among each cell's own tokens, over packed cells.

    Args:
        q_NHK: Queries, (N, H, K); fp32, fp16, bf16 (fp64 with the reference). k_NHK, v_NHK alike.
        k_NHK: Keys.
        v_NHK: Values.
        cu_seqlens: int32 or int64, (C + 1,), from 0 to N; cells may be empty.
        max_seqlen: Tokens of the longest cell (the size of the Triton launch).
        scale: Factor of the logits; K^-0.5 by default.

    Returns:
        (N, H, K). Forward FLOPs 4 H K sum(n_c^2), backward 2.5 times that; memory grows with N only.
    """
    scale = q_NHK.shape[-1] ** -0.5 if scale is None else scale
    if use_triton(q_NHK):
        from cellfoundry_kernels.varlen.kernel import varlen_attention as twin

        return twin(q_NHK, k_NHK, v_NHK, cu_seqlens, max_seqlen, scale)
    return reference.varlen_attention(q_NHK, k_NHK, v_NHK, cu_seqlens, scale)
