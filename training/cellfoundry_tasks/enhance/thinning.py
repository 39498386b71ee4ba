"""Cells at a lower depth, by drawing their molecules: full-depth cells whose answer is known."""

from __future__ import annotations

import anndata as ad
import numpy as np
import numpy.typing as npt


def thinned(cells: ad.AnnData, depth: float, seed: int) -> ad.AnnData:
    """Each molecule of raw counts is kept with probability ``depth``: Binomial(count, depth), float32 CSR (C, G).

    Cells keep their order; some may be empty. A cell's draw depends on its place, the depth and the seed.
    """
    counts_CG = cells.X.tocsr().copy()
    draw = np.random.default_rng([seed, round(depth * 1e9)])
    counts_CG.data = draw.binomial(counts_CG.data.astype(np.int64), depth).astype(np.float32)
    counts_CG.eliminate_zeros()
    return ad.AnnData(counts_CG, obs=cells.obs[[]].copy(), var=cells.var.copy())


def with_counts(cells: ad.AnnData) -> npt.NDArray[np.bool_]:
    """Cells in which anything is left, (C,)."""
    return np.diff(cells.X.indptr) > 0
