"""Representations that need no model: what an embedding has to be better than.

Legend: C cells, G genes, K components.
"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellfoundry_tasks.extra import library

HIGHLY_VARIABLE_GENES = 2000


def log_normalized(cells: ad.AnnData) -> Any:
    """log1p of counts per 10,000, CSR (C, G)."""
    totals = np.asarray(cells.X.sum(1)).ravel()
    return cells.X.multiply(1e4 / totals[:, None]).tocsr().log1p()


def pca(cells: ad.AnnData, components: int = 50, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """PCA of log-normalised highly variable genes of raw counts, float32 (C, K)."""
    return pca_of_logs(log_normalized(cells), components, seed=seed)


def pca_of_logs(log_CG: Any, components: int = 50, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """PCA of the highly variable genes of log1p of counts per 10,000 (C, G), float32 (C, K): scanpy's usual road, not
    scaled to unit variance, which is the stronger of the two as a classifier's input.
    """
    chosen_CG = log_CG[:, highly_variable(log_CG)]
    components = min(components, min(chosen_CG.shape) - 1)
    found = library("scanpy").pp.pca(chosen_CG, n_comps=components, random_state=seed)
    return np.asarray(found, dtype=np.float32)


def highly_variable(log_CG: Any) -> npt.NDArray[np.bool_]:
    """scanpy's choice of genes by dispersion of log1p of counts per 10,000, (G,)."""
    normalized = ad.AnnData(log_CG)
    most_G, least_G = log_CG.max(0), log_CG.min(0)
    if sp.issparse(log_CG):
        most_G, least_G = most_G.toarray(), least_G.toarray()
    varying = int(
        (np.asarray(most_G) > np.asarray(least_G)).sum()
    )  # of fewer than it is asked for scanpy warns
    n_top_genes = min(HIGHLY_VARIABLE_GENES, varying)
    library("scanpy").pp.highly_variable_genes(normalized, n_top_genes=n_top_genes)
    return np.asarray(normalized.var["highly_variable"], dtype=bool)
