"""FAVOR+ on a CPU without gradients: head by head and in chunks of positions, whose feature maps stay in the cache.

The maps of a cell of 19,266 positions take 330 MB in the reference, which writes and reads them five times.

Shape legend: C cells, P positions, H heads, K head dim, M features, p positions of a chunk, L = K + 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cellfoundry_kernels.favor.reference import FAVOR_EPSILON

# A chunk's map of 266 features is 1 MiB, the second level cache of an EPYC core.
CHUNK = 1024


def favor_attention_without_grad(
    q_CPHK: Tensor, k_CPHK: Tensor, v_CPHK: Tensor, projection_MK: Tensor
) -> Tensor:
    """As ``reference.favor_attention`` without weights, heads second to last in all; computed in float32.

    The keys' stabiliser, a maximum over a cell, is found on the way: sums so far are scaled whenever it grows.
    """
    projection_KM = (projection_MK.float() * projection_MK.shape[1] ** -0.25).T.contiguous()
    out_CPHK = torch.empty_like(v_CPHK, memory_format=torch.contiguous_format)
    for q_PHK, k_PHK, v_PHK, out_PHK in zip(q_CPHK, k_CPHK, v_CPHK, out_CPHK, strict=True):
        found = [
            _context(k_PK, v_PK, projection_KM)
            for k_PK, v_PK in zip(k_PHK.unbind(1), v_PHK.unbind(1), strict=True)
        ]
        stabilizer = torch.stack([largest for _, _, largest in found]).max()
        for head, (context_ML, total_L, largest) in enumerate(found):
            context_ML = context_ML * (largest - stabilizer).exp() + FAVOR_EPSILON * total_L
            _query(q_PHK[:, head], projection_KM, context_ML, out_PHK[:, head])
    return out_CPHK


def _context(k_PK: Tensor, v_PK: Tensor, projection_KM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over positions of features x (value, 1), (M, L); sum of (value, 1), (L,); the stabiliser of both."""
    largest = projection_KM.new_tensor(-torch.inf)
    context_ML = projection_KM.new_zeros(projection_KM.shape[1], v_PK.shape[1] + 1)
    total_L = context_ML.new_zeros(v_PK.shape[1] + 1)
    for k_pK, v_pK in zip(k_PK.split(CHUNK), v_PK.split(CHUNK), strict=True):
        v1_pL = F.pad(v_pK.float(), (0, 1), value=1.0)
        dash_pM, half_norm_p1 = _exponents(k_pK.float(), projection_KM)
        larger = torch.maximum(largest, dash_pM.max())
        exp_pM = dash_pM.sub_(half_norm_p1 + larger).exp_()
        context_ML = torch.addmm(context_ML * (largest - larger).exp(), exp_pM.T, v1_pL)
        total_L += v1_pL.sum(0)
        largest = larger
    return context_ML, total_L, largest


def _query(q_PK: Tensor, projection_KM: Tensor, context_ML: Tensor, out_PK: Tensor) -> None:
    """Write each query's weighted mean of the values."""
    eps_1L = FAVOR_EPSILON * context_ML.sum(0, keepdim=True)
    for q_pK, out_pK in zip(q_PK.split(CHUNK), out_PK.split(CHUNK), strict=True):
        dash_pM, half_norm_p1 = _exponents(q_pK.float(), projection_KM)
        exp_pM = dash_pM.sub_(half_norm_p1 + dash_pM.amax(1, keepdim=True)).exp_()
        sums_pL = torch.addmm(eps_1L, exp_pM, context_ML)
        out_pK.copy_(sums_pL[:, :-1] / sums_pL[:, -1:])


def _exponents(z_pK: Tensor, projection_KM: Tensor) -> tuple[Tensor, Tensor]:
    """``c P z`` (p, M) and ``c^2 |z|^2 / 2`` (p, 1), with c = K^-0.25."""
    return z_pK @ projection_KM, (0.5 * z_pK.shape[1] ** -0.5) * (z_pK * z_pK).sum(1, keepdim=True)
