"""UMAPs of cells before and after their batches are joined."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellfoundry_tasks.extra import library
from cellfoundry_tasks.quiet import quiet
from cellfoundry_tasks.random_state import own_random_state

NEIGHBORS = 15


def umap(
    coordinates: npt.NDArray[np.float32], seed: int, weights: sp.csr_matrix | None = None
) -> npt.NDArray[np.float32]:
    """scanpy's UMAP of coordinates (C, K), or of a graph's ``weights`` (C, C) where given; float32 (C, 2)."""
    scanpy = library("scanpy")
    cells = ad.AnnData(obsm={"coordinates": coordinates})
    # UMAP says that a seed makes it run on one thread.
    with quiet("n_jobs value .* overridden"), own_random_state(seed):
        if weights is None:
            scanpy.pp.neighbors(
                cells, NEIGHBORS, use_rep="coordinates", random_state=seed, transformer="sklearn"
            )
        else:
            cells.obsp["connectivities"] = weights
            cells.uns["neighbors"] = _described(weights)
        scanpy.tl.umap(cells, random_state=seed)
    return np.asarray(cells.obsm["X_umap"], dtype=np.float32)


def _described(weights: sp.csr_matrix) -> dict[str, Any]:
    """What scanpy wants to know of a graph that it did not make."""
    return {
        "connectivities_key": "connectivities",
        "params": {"method": "umap", "n_neighbors": NEIGHBORS, "use_rep": "coordinates"},
    }
