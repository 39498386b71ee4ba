"""Clusters of cells against a reference: resolution search and the five scores of the published experiment.

Legend: C cells, W width of a representation, K clusters, L principal components.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
from sklearn import metrics

from cellfoundry_tasks.baselines import highly_variable, log_normalized
from cellfoundry_tasks.extra import library
from cellfoundry_tasks.quiet import quiet

REFERENCE_RESOLUTION = 0.6
REFERENCE_COMPONENTS = 50
NEIGHBOURS = 15
SEARCH_STEPS = 15
LARGEST_RESOLUTION = 4.0

CLUSTER_SCORES = {
    "nmi": "NMI",
    "ari": "ARI",
    "sil": "silhouette",
    "ch": "Calinski-Harabasz",
    "db": "Davies-Bouldin",
}
"""Scores by key; higher is better for all but Davies-Bouldin."""

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]


@dataclass(frozen=True)
class Reference:
    """What the full-depth cells are.

    Attributes:
        clusters: cluster or label of each cell, (C,).
        places_CL: principal components of the full-depth cells, in which clusters are to be compact, float32.
        origin: where the clusters are from.
    """

    clusters: Labels
    places_CL: Floats
    origin: str

    @property
    def number(self) -> int:
        """Of clusters."""
        return len(np.unique(self.clusters))

    def of(self, chosen: npt.NDArray[np.bool_]) -> Reference:
        """That of some of the cells."""
        return replace(self, clusters=self.clusters[chosen], places_CL=self.places_CL[chosen])


def reference_places(cells: ad.AnnData) -> Floats:
    """PCA as the published experiment defines the reference: counts per 10,000, log1p, highly variable genes, unit
    variance (at most 10 deviations), 50 components. Float32 (C, L).
    """
    scanpy = library("scanpy")
    log_CG = log_normalized(cells)
    scaled = scanpy.pp.scale(log_CG[:, highly_variable(log_CG)].toarray(), max_value=10)
    components = min(REFERENCE_COMPONENTS, min(scaled.shape) - 1)
    return np.asarray(scanpy.pp.pca(scaled, n_comps=components, random_state=0), dtype=np.float32)


def leiden(graph: ad.AnnData, resolution: float) -> Labels:
    """Clusters (C,) of a graph from ``neighbour_graph`` at a resolution, seed 0, igraph's implementation."""
    library("scanpy").tl.leiden(
        graph, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=0
    )
    return graph.obs["leiden"].to_numpy().astype(np.int64)


def neighbour_graph(features_CW: Floats) -> ad.AnnData:
    """Cells without genes whose obsp holds the graph of 15 nearest neighbours."""
    graph = ad.AnnData(obsm={"features": features_CW})
    with quiet("Tensorflow not installed"):  # umap's, of which only the weights of the graph are asked for
        library("scanpy").pp.neighbors(
            graph, use_rep="features", n_neighbors=min(NEIGHBOURS, len(features_CW) - 1), random_state=0
        )
    return graph


def clustered(features_CW: Floats, clusters: int) -> Labels:
    """Leiden clusters (C,) at the resolution that gives the wished number, or the nearest to it: found by halving the
    span from 0 to 4, since more resolution gives more clusters.
    """
    graph = neighbour_graph(features_CW)
    low, high = 0.0, LARGEST_RESOLUTION
    best: Labels | None = None
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        found = leiden(graph, middle)
        number = len(np.unique(found))
        if best is None or abs(number - clusters) < abs(len(np.unique(best)) - clusters):
            best = found
        if number == clusters:
            break
        low, high = (middle, high) if number < clusters else (low, middle)
    assert best is not None
    return best


def cluster_scores(found: Labels, reference: Reference) -> dict[str, float]:
    """By key of ``CLUSTER_SCORES``: agreement with the reference's clusters (NMI, ARI), and how compact and apart the
    found clusters are among the reference's principal components (the others, left out where all is one cluster).
    """
    scores = {
        "nmi": float(metrics.normalized_mutual_info_score(reference.clusters, found)),
        "ari": float(metrics.adjusted_rand_score(reference.clusters, found)),
    }
    if 2 <= len(np.unique(found)) < len(found):
        places_CL = reference.places_CL
        scores["sil"] = float(metrics.silhouette_score(places_CL, found))
        scores["ch"] = float(metrics.calinski_harabasz_score(places_CL, found))
        scores["db"] = float(metrics.davies_bouldin_score(places_CL, found))
    return scores
