"""FAVOR+ in plain torch: the twin of the kernel, and the CPU path.

Shape legend: C cells, H heads, P key positions, Q query positions, K head dim, M features, L = K + 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Added to every exponential feature (Choromanski et al. 2021, "Rethinking Attention with Performers").
FAVOR_EPSILON = 1e-4


def favor_attention(
    q_CHQK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor, projection_MK: Tensor, weight_CP: Tensor | None = None
) -> Tensor:
    """FAVOR+ linear attention; features are computed in float32 at least.

    ``phi = m^-0.5 (E + eps)``: the factor cancels between numerator and denominator, and ``eps`` is added to
    the sums of E instead of to E itself, which saves passes over the (positions x features) maps. A column of
    ones beside V makes the denominator come out of the same two products. A key's weight multiplies its row of
    both, and so its share.
    """
    dtype = torch.promote_types(v_CHPK.dtype, torch.float32)
    v1_CHPL = F.pad(v_CHPK.to(dtype), (0, 1), value=1.0)
    if weight_CP is not None:
        v1_CHPL = v1_CHPL * weight_CP[:, None, :, None].detach().to(dtype)
    # One maximum for the keys of a cell, one for each query token.
    k_exp_CHPM = _favor_exponential(k_CHPK.to(dtype), projection_MK.to(dtype), (1, 2, 3))
    context_CHML = k_exp_CHPM.mT @ v1_CHPL + FAVOR_EPSILON * v1_CHPL.sum(2, keepdim=True)
    del k_exp_CHPM  # without autograd the keys' map is gone before the queries' map is made
    q_exp_CHQM = _favor_exponential(q_CHQK.to(dtype), projection_MK.to(dtype), (3,))
    out_CHQL = q_exp_CHQM @ context_CHML + FAVOR_EPSILON * context_CHML.sum(2, keepdim=True)
    return (out_CHQL[..., :-1] / out_CHQL[..., -1:]).to(v_CHPK.dtype)


def _favor_exponential(z_CHPK: Tensor, projection_MK: Tensor, stabilized_dims: tuple[int, ...]) -> Tensor:
    """``E = exp(c P z - c^2 |z|^2 / 2 - s)``, ``s`` the maximum of ``c P z`` over the given dimensions."""
    root = z_CHPK.shape[-1] ** -0.25
    dash_CHPM = z_CHPK @ (root * projection_MK).T
    # As in the official model no gradient passes through the maximum: it only keeps exp in range.
    stabilizer = dash_CHPM.detach().amax(stabilized_dims, keepdim=True)
    half_norm_CHP1 = (0.5 * root * root) * (z_CHPK * z_CHPK).sum(-1, keepdim=True)
    # In place: no backward needs what is overwritten.
    return dash_CHPM.sub_(half_norm_CHP1 + stabilizer).exp_()
