"""Smoothing over nearest neighbours: the opponent that knows the other cells, without a network.

In the manner of Wagner et al. 2018, "K-nearest neighbor smoothing": a cell becomes the mean of itself and the cells
nearest to it in a PCA of the same thinned cells.

Legend: C cells, J judged cells, G genes, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.neighbors import NearestNeighbors

from cellfoundry_tasks.baselines import log_normalized, pca

K_GRID = (5, 10, 15, 30, 60, 120)
LOG_OF_MEAN, MEAN_OF_LOGS = "log of mean", "mean of logs"
"""The two means; the log of a mean is nearer to a gene that is expressed, the mean of logs to all genes on average."""

Floats = npt.NDArray[np.float32]


def smoothed(
    cells: ad.AnnData, judged: npt.NDArray[np.int64], grid: Sequence[int] = K_GRID
) -> Iterator[tuple[int, Floats, Floats]]:
    """For each k of the ``grid``, or all cells where there are fewer: k, and two means over a judged cell's k nearest
    cells, itself among them, float32 (J, G) each in log1p of counts per 10,000.

    The first is the log of the mean of counts per 10,000, the second the mean of logs.
    """
    log_CG = log_normalized(cells)
    normal_CG = log_CG.expm1()
    places_CK = pca(cells)
    grid = sorted({min(k, cells.n_obs) for k in grid})
    near_JK = NearestNeighbors(n_neighbors=grid[-1]).fit(places_CK).kneighbors(places_CK[judged])[1]
    for k in grid:
        mean_JC = _averaging(near_JK[:, :k], cells.n_obs)
        yield k, _dense(mean_JC @ normal_CG, log=True), _dense(mean_JC @ log_CG)


def gene_means(cells: ad.AnnData) -> Floats:
    """log1p of each gene's mean of counts per 10,000 over all cells, float32 (G,): every cell gets the same."""
    return np.log1p(np.asarray(log_normalized(cells).expm1().mean(0), dtype=np.float32)).ravel()


def _averaging(near_JK: npt.NDArray[np.int64], cells: int) -> Any:
    """The matrix (J, C) whose product with cells is the mean over each judged cell's neighbours."""
    rows, k = near_JK.shape
    share = np.full(rows * k, 1 / k, dtype=np.float32)
    return sp.csr_matrix((share, near_JK.ravel(), np.arange(0, rows * k + 1, k)), (rows, cells))


def _dense(mean_JG: Any, *, log: bool = False) -> Floats:
    dense_JG = mean_JG.toarray().astype(np.float32)
    return np.log1p(dense_JG) if log else dense_JG
