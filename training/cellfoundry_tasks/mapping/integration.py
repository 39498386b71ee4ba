"""Ways to join batches: Harmony and Scanorama move the cells, BBKNN chooses neighbours within every batch.

Legend: C cells, G genes, K components, N neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from cellfoundry_tasks.baselines import log_normalized
from cellfoundry_tasks.extra import library
from cellfoundry_tasks.quiet import quiet
from cellfoundry_tasks.random_state import own_random_state

Floats = npt.NDArray[np.float32]
Names = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Neighbors:
    """Nearest neighbours of each cell, the cell among them: indices (C, N) and distances (C, N), ascending."""

    indices: npt.NDArray[np.int64]
    distances: Floats

    def first(self, number: int) -> Neighbors:
        """The nearest ``number`` of them."""
        return Neighbors(self.indices[:, :number], self.distances[:, :number])


def principal_axes(values: Floats, number: int, seed: int) -> PCA:
    """Those of an embedding or of expression, (C, W), or as many as there are; not scaled."""
    number = min(number, min(values.shape) - 1)
    return PCA(number, svd_solver="randomized", random_state=seed).fit(values)


def components(values: Floats, number: int, seed: int) -> Floats:
    """The first principal components of an embedding, float32 (C, K)."""
    found: Floats = principal_axes(values, number, seed).transform(values).astype(np.float32)
    return found


def harmony(coordinates: Floats, batch: Names, seed: int) -> Floats:
    """Harmony with its own defaults (Korsunsky et al. 2019), (C, K)."""
    harmonypy = library("harmonypy")
    with quiet(), own_random_state(seed):
        result = harmonypy.run_harmony(
            coordinates, {"batch": batch}, "batch", random_state=seed, verbose=False
        )
    corrected = np.asarray(result.Z_corr, dtype=np.float32)
    # Before 2.0 harmonypy gave (K, C), which no reshape makes right.
    assert corrected.shape == coordinates.shape, f"harmonypy gave {corrected.shape} for {coordinates.shape}"
    return corrected


def scanorama(cells: ad.AnnData, batch: Names, genes: npt.NDArray[np.bool_], seed: int) -> Floats:
    """Scanorama's joint embedding of log-normalised counts over ``genes`` (Hie et al. 2019), 100 wide."""
    module = library("scanorama")
    normalized_CG = log_normalized(cells)[:, genes]
    rows = [np.flatnonzero(batch == name) for name in np.unique(batch)]
    names = cells.var_names[genes].tolist()
    with quiet(), own_random_state(seed):
        parts, _ = module.integrate(
            [normalized_CG[chosen] for chosen in rows], [names] * len(rows), seed=seed, verbose=False
        )
    joined = np.empty((cells.n_obs, parts[0].shape[1]), dtype=np.float32)
    for chosen, part in zip(rows, parts, strict=True):
        joined[chosen] = part
    return joined


def nearest(coordinates: Floats, number: int) -> Neighbors:
    """Exact nearest neighbours."""
    distances, indices = NearestNeighbors(n_neighbors=number).fit(coordinates).kneighbors(coordinates)
    return Neighbors(indices, distances.astype(np.float32))


def bbknn(coordinates: Floats, batch: Names, per_batch: int) -> tuple[Neighbors, sp.csr_matrix]:
    """``per_batch`` nearest neighbours of every cell in every batch (Polanski et al. 2020), and the weights of
    the graph that they make, (C, C).

    A batch's neighbours are found exactly, so that two runs agree.
    """
    module = library("bbknn.matrix")
    with quiet(), own_random_state(0):
        distances_CC, weights_CC, _ = module.bbknn(
            coordinates, batch, per_batch, coordinates.shape[1], computation="cKDTree"
        )
    return _as_neighbors(distances_CC), weights_CC


def _as_neighbors(distances_CC: Any) -> Neighbors:
    """The rows of a graph of distances as lists, with each cell as its own first neighbour."""
    n_cells = distances_CC.shape[0]
    number = int(np.diff(distances_CC.indptr).min()) + 1
    indices = np.empty((n_cells, number), dtype=np.int64)
    distances = np.zeros((n_cells, number), dtype=np.float32)
    indices[:, 0] = np.arange(n_cells)
    for cell in range(n_cells):
        entries = slice(distances_CC.indptr[cell], distances_CC.indptr[cell + 1])
        order = np.argsort(distances_CC.data[entries], kind="stable")[: number - 1]
        indices[cell, 1:] = distances_CC.indices[entries][order]
        distances[cell, 1:] = distances_CC.data[entries][order]
    return Neighbors(indices, distances)
