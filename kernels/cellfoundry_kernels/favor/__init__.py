"""FAVOR+ linear attention over all positions of a cell: the public op.

Shape legend: C cells, H heads, P positions, K head dim, M features.
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels.favor import reference


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
