"""Attention among the tokens of each packed cell: the public op.

Shape legend: N tokens over all cells, C cells, H heads, K head dim. Cell ``c`` owns tokens
``cu_seqlens[c]:cu_seqlens[c + 1]``.
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels.dispatch import use_triton
from cellfoundry_kernels.varlen import cpu, reference


def varlen_attention(
    q_NHK: Tensor,
    k_NHK: Tensor,
    v_NHK: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None = None,
) -> Tensor:
    """Full softmax attention among each cell's own tokens, over packed cells.

    The same bits in every run of the same batch. Company reaches a cell through ``max_seqlen`` alone: half
    precision of heads up to 64 has other tiles where the longest cell has more than 64 tokens, and a short cell
    gets the same result from them but for rounding. A NaN stays in its cell and comes out.

    Args:
        q_NHK: Queries, (N, H, K); fp32, fp16, bf16 (fp64 with the reference). k_NHK, v_NHK alike. Views of one
            packed projection (N, 3, H, K) are read in place.
        k_NHK: Keys.
        v_NHK: Values.
        cu_seqlens: int32 or int64, (C + 1,), from 0 to N; cells may be empty.
        max_seqlen: Tokens of the longest cell (chooses tile sizes on the GPU).
        scale: Factor of the logits; K^-0.5 by default.

    Returns:
        (N, H, K). Forward FLOPs 4 H K sum(n_c^2), backward 2.5 times that (3.5 times on the GPU, where both
        of its kernels recompute the shares); bytes at least 4 and 8 N H K elements; memory grows with N only.

    Raises:
        ValueError: Queries, keys and values that differ in shape or dtype; heads wider than 128 channels on
            the GPU.
    """
    if not q_NHK.shape == k_NHK.shape == v_NHK.shape or not q_NHK.dtype == k_NHK.dtype == v_NHK.dtype:
        kinds = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in (q_NHK, k_NHK, v_NHK))
        raise ValueError(f"varlen_attention got queries, keys and values of {kinds}: give three of one kind.")
    scale = q_NHK.shape[-1] ** -0.5 if scale is None else scale
    if use_triton(q_NHK):
        from cellfoundry_kernels.varlen.kernel import varlen_attention as twin

        return twin(q_NHK, k_NHK, v_NHK, cu_seqlens, max_seqlen, scale)
    if q_NHK.device.type == "cpu":
        return cpu.varlen_attention(q_NHK, k_NHK, v_NHK, cu_seqlens, scale)
    return reference.varlen_attention(q_NHK, k_NHK, v_NHK, cu_seqlens, scale)
