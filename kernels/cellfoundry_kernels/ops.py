"""The public ops: what they compute, and the choice between the Triton twin and the torch reference.

Shape legend: N tokens over all cells, C cells, H heads, K head dim, D width, B bins, P positions, M features,
X chosen positions. Tokens of one cell are contiguous; cell ``c`` owns tokens ``cu_seqlens[c]:cu_seqlens[c +
1]``. Every op but the integer arguments is differentiable.
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels import reference
from cellfoundry_kernels.dispatch import use_triton


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
        from cellfoundry_kernels.triton_ops.value_embedding import value_embedding as twin

        return twin(inputs, alpha)
    return reference.value_embedding(*inputs, alpha=alpha)


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
        from cellfoundry_kernels.triton_ops.varlen_attention import varlen_attention as twin

        return twin(q_NHK, k_NHK, v_NHK, cu_seqlens, max_seqlen, scale)
    return reference.varlen_attention(q_NHK, k_NHK, v_NHK, cu_seqlens, scale)


def favor_attention(q_CHPK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor, projection_MK: Tensor) -> Tensor:
    """FAVOR+ linear attention with softmax features (Choromanski et al. 2021, arXiv 2009.14794).

    ``phi(z) = m^-0.5 (exp(c P z - c^2 |z|^2 / 2 - s) + 1e-4)``, ``c = K^-0.25``, and
    ``out = phi(Q) (phi(K)^T V) / (phi(Q) . sum phi(K))`` over all positions. ``s`` is the maximum of ``c P
    z``: over the features for each query token, over heads, positions and features for the keys of each cell,
    so a cell's result does not depend on its company. No gradient passes through ``s``.

    Args:
        q_CHPK: Queries, (C, H, P, K). k_CHPK, v_CHPK alike.
        k_CHPK: Keys.
        v_CHPK: Values.
        projection_MK: Random features P, (M, K); not trained.

    Returns:
        (C, H, P, K) in the values' dtype. Forward FLOPs 8 C H P M K; the reference holds the two (C, H, P, M)
        maps.
    """
    return reference.favor_attention(q_CHPK, k_CHPK, v_CHPK, projection_MK)


def pool_cells(x_ND: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    """One vector a cell from its tokens, which are the genes, then T, then S.

    Args:
        x_ND: Token vectors, (N, D), any float dtype.
        cu_seqlens: int32 or int64, (C + 1,).
        mode: "all" = concat(S, T, max over genes, mean over genes); "max" = max over all tokens, T and S
            included.

    Returns:
        (C, 4 D) for "all", (C, D) for "max". A cell without gene tokens is NaN throughout, in both modes.

    Raises:
        ValueError: Unknown mode.
    """
    if mode not in ("all", "max"):
        raise ValueError(f"pool_cells got mode {mode!r}: use 'all' or 'max'.")
    if use_triton(x_ND):
        from cellfoundry_kernels.triton_ops.pool_cells import pool_cells as twin

        return twin(x_ND, cu_seqlens, mode)
    return reference.pool_cells(x_ND, cu_seqlens, mode)


def scatter_into_zero_table(
    zero_table_PD: Tensor, encoder_ND: Tensor, cell_index_N: Tensor, position_N: Tensor, cells: int
) -> Tensor:
    """Decoder input: every cell starts as the table of zero genes, its encoder tokens overwrite theirs.

    Args:
        zero_table_PD: What an unmasked zero gene is at each position, the same for every cell, (P, D).
        encoder_ND: Encoder output, (N, D); its dtype is the result's.
        cell_index_N: int64 cell of each token, (N,).
        position_N: int64 position of each token, (N,); no (cell, position) pair occurs twice.
        cells: Number of cells C.

    Returns:
        (C, P, D); no FLOPs, bytes C P D written and N D read.
    """
    return reference.scatter_into_zero_table(zero_table_PD, encoder_ND, cell_index_N, position_N, cells)


def masked_mse(prediction_X: Tensor, target_X: Tensor) -> Tensor:
    """Mean squared error over the chosen positions, a scalar in float32 at least; 0 where nothing was chosen.

    Args:
        prediction_X: Predictions at the chosen positions, (X,).
        target_X: Targets, (X,).
    """
    return reference.masked_mse(prediction_X, target_X)
