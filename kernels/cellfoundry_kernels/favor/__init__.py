"""FAVOR+ linear attention over all positions of a cell: the public op.

Shape legend: C cells, H heads, P key positions, Q query positions, K head dim, M features.
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels.dispatch import use_triton
from cellfoundry_kernels.favor import reference


def favor_attention(
    q_CHQK: Tensor,
    k_CHPK: Tensor,
    v_CHPK: Tensor,
    projection_MK: Tensor,
    *,
    key_weight_CP: Tensor | None = None,
) -> Tensor:
    """FAVOR+ linear attention with softmax features (Choromanski et al. 2021, arXiv 2009.14794).

    ``phi(z) = m^-0.5 (exp(c P z - c^2 |z|^2 / 2 - s) + 1e-4)``, ``c = K^-0.25``, and
    ``out = phi(Q) (phi(K)^T V) / (phi(Q) . sum phi(K))`` over all positions. ``s`` is the maximum of ``c P
    z``: over the features for each query token, over heads, positions and features for the keys of each cell,
    so a cell's result does not depend on its company (but for rounding). No gradient passes through ``s``.

    On a GPU no feature map is written to memory and keys are read once: their maximum is found while their
    exponentials are summed, and the sums are scaled when it is known. The result is that of a maximum taken first,
    which would read the keys twice, so there is no choice of it. bfloat16 inputs meet the projection in float16
    and what that rounding left of it, 22 bits, where errors would show; float16 and float32 inputs in float32.
    Heads wider than 64 channels, projections beyond 272 features of 64 channels, and devices with less shared memory
    than an A100 take the reference on a GPU too.

    Args:
        q_CHQK: Queries, (C, H, Q, K); fp32, fp16, bf16 (fp64 with the reference). Views of (C, Q, H, K) are
            read in place, as are those of keys and values.
        k_CHPK: Keys, (C, H, P, K); P need not be Q.
        v_CHPK: Values, as the keys.
        projection_MK: Random features P, (M, K); not trained.
        key_weight_CP: float32 (C, P), not negative: each key counts so many times in both sums, for example 1 /
            sampling rate where positions are a sample. It does not move ``s``, and gets no gradient.

    Returns:
        (C, H, Q, K) in the inputs' dtype. Forward FLOPs 4 C H (P + Q) M K, backward twice that (on the GPU 6 and 13
        instead of 4 and 8 products of bfloat16: features and outputs are made again, rests of rounding
        multiplied); bytes at least 2 C H (P + Q) K elements forward, twice that
        backward. Memory beside inputs and results: on the GPU below 0.3 GB for 64 published cells (see
        ``kernel``); the reference holds the two (C, H, P, M) maps in float32, 10 GB each for those.

    Raises:
        ValueError: Shapes that do not fit, dtypes that differ, or no keys.
    """
    _check(q_CHQK, k_CHPK, v_CHPK, projection_MK, key_weight_CP)
    if use_triton(q_CHQK):
        from cellfoundry_kernels.favor import kernel, tiles

        if tiles.runs(len(projection_MK), q_CHQK.shape[3], q_CHQK.device):
            return kernel.favor_attention(q_CHQK, k_CHPK, v_CHPK, projection_MK, key_weight_CP)
    return reference.favor_attention(q_CHQK, k_CHPK, v_CHPK, projection_MK, key_weight_CP)


def _check(
    q_CHQK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor, projection_MK: Tensor, key_weight_CP: Tensor | None
) -> None:
    cells, heads, _, channels = q_CHQK.shape
    positions = k_CHPK.shape[2]
    fit = k_CHPK.shape == v_CHPK.shape == (cells, heads, positions, channels)
    if not fit or not q_CHQK.dtype == k_CHPK.dtype == v_CHPK.dtype:
        kinds = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in (q_CHQK, k_CHPK, v_CHPK))
        raise ValueError(
            f"favor_attention got queries, keys and values of {kinds}: only the number of queries may differ."
        )
    if not positions or not len(projection_MK) or projection_MK.shape[1] != channels:
        raise ValueError(
            f"favor_attention got {positions} keys of {channels} channels and a projection of "
            f"{tuple(projection_MK.shape)}: give at least one of both, and as many channels."
        )
    if key_weight_CP is not None and key_weight_CP.shape != (cells, positions):
        raise ValueError(
            f"favor_attention got key weights of {tuple(key_weight_CP.shape)}: give one for each of {cells} "
            f"cells x {positions} positions."
        )
