"""One vector a cell from its tokens: the public op.

Shape legend: N tokens over all cells, C cells, D width; cell ``c`` owns tokens ``cu_seqlens[c]:cu_seqlens[c + 1]``.
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels.dispatch import use_triton
from cellfoundry_kernels.pooling import reference


def pool_cells(x_ND: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    """One vector a cell from its tokens, which are the genes, then T, then S.

    Args:
        x_ND: Token vectors, (N, D), any float dtype.
        cu_seqlens: int32 or int64, (C + 1,).
        mode: "all" = concat(S, T, max over genes, mean over genes); "max" = max over all tokens, T and S
            included.

    Returns:
        (C, 4 D) for "all", (C, D) for "max". A cell without gene tokens is NaN throughout, in both modes, and
        its tokens have a gradient of zero. The gradient of a maximum goes to the first of equal tokens.
        Forward reads and backward writes N D elements; FLOPs do not count.

    Raises:
        ValueError: Unknown mode.
    """
    if mode not in ("all", "max"):
        raise ValueError(f"pool_cells got mode {mode!r}: use 'all' or 'max'.")
    if use_triton(x_ND):
        from cellfoundry_kernels.pooling.kernel import pool_cells as twin

        return twin(x_ND, cu_seqlens, mode)
    return reference.pool_cells(x_ND, cu_seqlens, mode)
