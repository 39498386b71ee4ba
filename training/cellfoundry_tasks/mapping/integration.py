"""Ways to join batches: Harmony and Scanorama move the cells, BBKNN chooses neighbours within every batch.

Legend: C cells, G genes, K components, N neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    A batch's neighbours are found exactly, so that two runs agree; here too, since the library's own graph of distances
    has no place for another cell at distance 0.
    """
    module = library("bbknn.matrix")
    with quiet(), own_random_state(0):
        _, weights_CC, _ = module.bbknn(
            coordinates, batch, per_batch, coordinates.shape[1], computation="cKDTree"
        )
    return _balanced(coordinates, batch, per_batch), weights_CC


def _balanced(coordinates: Floats, batch: Names, per_batch: int) -> Neighbors:
    """The nearest of every batch, in the order of their distance, with each cell as its own first neighbour."""
    found = []
    for name in np.unique(batch):
        rows = np.flatnonzero(batch == name)
        near = NearestNeighbors(n_neighbors=per_batch).fit(coordinates[rows]).kneighbors(coordinates)
        found.append((near[0], rows[near[1]]))
    distances, indices = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
    # Among as many cells at one place as there are neighbours, the cell itself may not be found.
    own = indices == np.arange(len(coordinates))[:, None]
    missing = ~own.any(1)
    indices[missing, distances[missing].argmin(1)] = np.flatnonzero(missing)
    own = indices == np.arange(len(coordinates))[:, None]
    order = np.argsort(np.where(own, -1.0, distances), axis=1, kind="stable")
    return Neighbors(
        np.take_along_axis(indices, order, axis=1),
        np.take_along_axis(distances, order, axis=1).astype(np.float32),
    )
