"""Plain torch version of every op: the twin that the Triton kernels are tested against, and the CPU path.

Shape legend: N tokens over all cells, C cells, H heads, K head dim, D width, B bins, P positions, M features.
Arguments, results and errors are documented once, at the public functions in ``ops.py``.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

# FAVOR+ adds this to every exponential feature (Choromanski et al. 2021, "Rethinking Attention with
# Performers").
FAVOR_EPSILON = 1e-4
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


def varlen_attention(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """Attention cell by cell, so that neither padding nor an N x N mask exists.

    Without a mask torch takes its flash path, whose memory grows with tokens and not with their square.
    """

    def one_cell(first: int, last: int) -> Tensor:
        q_1HnK, k_1HnK, v_1HnK = (x[first:last].transpose(0, 1)[None] for x in (q_NHK, k_NHK, v_NHK))
        return F.scaled_dot_product_attention(q_1HnK, k_1HnK, v_1HnK, scale=scale)[0].transpose(0, 1)

    bounds = cu_seqlens.tolist()
    cells = [one_cell(first, last) for first, last in itertools.pairwise(bounds) if last > first]
    return torch.cat(cells) if cells else torch.empty_like(v_NHK)


def favor_attention(q_CHPK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor, projection_MK: Tensor) -> Tensor:
    """FAVOR+ linear attention; features are computed in float32 at least.

    ``phi = m^-0.5 (E + eps)``: the factor cancels between numerator and denominator, and ``eps`` is added to
    the sums of E instead of to E itself, which saves passes over the (positions x features) maps. A column of
    ones beside V makes the denominator come out of the same two products.
    """
    dtype = torch.promote_types(v_CHPK.dtype, torch.float32)
    v1_CHPL = F.pad(v_CHPK.to(dtype), (0, 1), value=1.0)  # L = K + 1
    # One maximum for the keys of a cell, one for each query token.
    k_exp_CHPM = _favor_exponential(k_CHPK.to(dtype), projection_MK.to(dtype), (1, 2, 3))
    context_CHML = k_exp_CHPM.mT @ v1_CHPL + FAVOR_EPSILON * v1_CHPL.sum(2, keepdim=True)
    del k_exp_CHPM  # without autograd the keys' map is gone before the queries' map is made
    q_exp_CHPM = _favor_exponential(q_CHPK.to(dtype), projection_MK.to(dtype), (3,))
    out_CHPL = q_exp_CHPM @ context_CHML + FAVOR_EPSILON * context_CHML.sum(2, keepdim=True)
    return (out_CHPL[..., :-1] / out_CHPL[..., -1:]).to(v_CHPK.dtype)


def _favor_exponential(z_CHPK: Tensor, projection_MK: Tensor, stabilized_dims: tuple[int, ...]) -> Tensor:
    """``E = exp(c P z - c^2 |z|^2 / 2 - s)``, ``s`` the maximum of ``c P z`` over the given dimensions."""
    root = z_CHPK.shape[-1] ** -0.25
    dash_CHPM = z_CHPK @ (root * projection_MK).T
    # As in the official model no gradient passes through the maximum: it only keeps exp in range.
    stabilizer = dash_CHPM.detach().amax(stabilized_dims, keepdim=True)
    half_norm_CHP1 = (0.5 * root * root) * (z_CHPK * z_CHPK).sum(-1, keepdim=True)
    # In place: no backward needs what is overwritten.
    return dash_CHPM.sub_(half_norm_CHP1 + stabilizer).exp_()


def pool_cells(x_ND: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    """Segment reductions over all cells at once."""
    if not len(x_ND):  # segment_reduce refuses an empty input
        width = x_ND.shape[1] * (4 if mode == "all" else 1)
        return x_ND.new_full((len(cu_seqlens) - 1, width), torch.nan)
    lengths_C = cu_seqlens.diff().long()
    has_genes_C1 = (lengths_C > 2)[:, None]
    if mode == "max":
        pooled = torch.segment_reduce(x_ND, "max", lengths=lengths_C)
    else:
        # Segments alternate between a cell's genes and its last two tokens; every second result is wanted.
        last_C = lengths_C.clamp(max=2)
        lengths_2C = torch.stack([lengths_C - last_C, last_C], 1).flatten()
        gene_max_CD = torch.segment_reduce(x_ND, "max", lengths=lengths_2C)[::2]
        # A half precision accumulator would lose the mean of thousands of tokens.
        wide_ND = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
        gene_mean_CD = torch.segment_reduce(wide_ND, "mean", lengths=lengths_2C)[::2].to(x_ND.dtype)
        # Token 0 stands in for the missing ones of a leading empty cell, which becomes NaN below.
        s_CD, t_CD = (x_ND[(cu_seqlens[1:].long() - back).clamp(min=0)] for back in (1, 2))
        pooled = torch.cat([s_CD, t_CD, gene_max_CD, gene_mean_CD], 1)
    return torch.where(has_genes_C1, pooled, torch.nan)


def scatter_into_zero_table(
    zero_table_PD: Tensor, encoder_ND: Tensor, cell_index_N: Tensor, position_N: Tensor, cells: int
) -> Tensor:
    """One copy of the table a cell, then one indexed write."""
    decoder_CPD = zero_table_PD.to(encoder_ND.dtype).repeat(cells, 1, 1)
    return decoder_CPD.index_put_((cell_index_N, position_N), encoder_ND)


def masked_mse(prediction_X: Tensor, target_X: Tensor) -> Tensor:
    """Mean squared error in float32 at least, summed once."""
    dtype = torch.promote_types(prediction_X.dtype, torch.float32)
    difference_X = prediction_X.to(dtype) - target_X.to(dtype)
    return (difference_X * difference_X).sum() / max(difference_X.numel(), 1)
