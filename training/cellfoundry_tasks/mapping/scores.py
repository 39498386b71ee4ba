"""How well batches are joined and labels kept apart: the metrics of scib-metrics, with its names and weights.

Legend: C cells, K components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from cellfoundry_tasks.extra import library
from cellfoundry_tasks.mapping.integration import Floats, Names, Neighbors, nearest
from cellfoundry_tasks.quiet import quiet
from cellfoundry_tasks.random_state import own_random_state

BIO, BATCH, TOTAL = "Bio conservation", "Batch correction", "Total"
BIO_METRICS = ("Isolated labels", "KMeans NMI", "KMeans ARI", "Silhouette label", "cLISI")
BATCH_METRICS = ("BRAS", "iLISI", "KBET", "Graph connectivity", "PCR comparison")
KBET_FEWEST_CELLS = 10
LISI_NEIGHBORS, KBET_NEIGHBORS, CONNECTIVITY_NEIGHBORS = 90, 50, 15
"""Those that scib-metrics' own table takes."""

Scores = dict[str, float]


@dataclass(frozen=True)
class Judged:
    """The cells that every method is judged on: batches and labels (C,), and the coordinates before any joining."""

    batch: Names
    label: Names
    before: Floats

    @property
    def labelled(self) -> bool:
        """Whether every cell has a label, of two or more; without, only what needs none is scored."""
        return bool((self.label != "").all()) and len(set(self.label.tolist())) > 1

    @property
    def shares_labels(self) -> bool:
        """Whether a label is in two batches and has the 10 cells that kBET takes; without, nothing says how well
        batches are mixed within a label."""
        pairs = pd.crosstab(self.label, self.batch).to_numpy()
        cells, batches = pairs.sum(axis=1), (pairs > 0).sum(axis=1)
        return bool(((cells >= KBET_FEWEST_CELLS) & (batches > 1) & (batches < cells)).any())


def scores_of_coordinates(coordinates: Floats, judged: Judged, seed: int) -> Scores:
    """All metrics of coordinates (C, K), both means, and 0.6 bio conservation + 0.4 batch correction; of labels that
    no two batches share, no kBET, BRAS, and means.

    The metrics, their arguments and the weights are those of scib-metrics' Benchmarker (Luecken et al. 2022), called
    one by one: it collects garbage around each, which takes longer than most of them.
    """
    metrics, batch, label = library("scib_metrics"), judged.batch, judged.label
    found = scores_of_graph(nearest(coordinates, LISI_NEIGHBORS), judged, seed)
    with quiet("PCR comparison score is negative"), own_random_state(seed):
        # A score below 0 says that there is more of the batches in it than before; scib-metrics makes it 0 and warns.
        found["PCR comparison"] = metrics.pcr_comparison(judged.before, coordinates, batch, categorical=True)
        if judged.labelled:
            clusters = metrics.nmi_ari_cluster_labels_kmeans(coordinates, label)
            found |= {
                "Isolated labels": metrics.isolated_labels(coordinates, label, batch),
                "KMeans NMI": clusters["nmi"],
                "KMeans ARI": clusters["ari"],
                "Silhouette label": metrics.silhouette_label(coordinates, label),
            }
            if judged.shares_labels:
                found["BRAS"] = metrics.bras(coordinates, label, batch)
    found = {name: float(value) for name, value in found.items()}
    if judged.labelled and judged.shares_labels:
        found[BIO] = float(np.mean([found[name] for name in BIO_METRICS]))
        found[BATCH] = float(np.mean([found[name] for name in BATCH_METRICS]))
        found[TOTAL] = 0.6 * found[BIO] + 0.4 * found[BATCH]
    return found


def scores_of_graph(neighbors: Neighbors, judged: Judged, seed: int) -> Scores:
    """Those of the metrics that neighbours alone give, by the same names; no means, as others lack."""
    metrics = library("scib_metrics")
    results: Callable[..., Any] = library("scib_metrics.nearest_neighbors").NeighborsResults

    def graph(number: int) -> Any:
        return results(**asdict(neighbors.first(number)))

    with quiet(), own_random_state(seed):
        found = {"iLISI": metrics.ilisi_knn(graph(LISI_NEIGHBORS), judged.batch)}
        if judged.labelled:
            found |= {
                "cLISI": metrics.clisi_knn(graph(LISI_NEIGHBORS), judged.label),
                "Graph connectivity": metrics.graph_connectivity(graph(CONNECTIVITY_NEIGHBORS), judged.label),
            }
            if judged.shares_labels:
                found["KBET"] = metrics.kbet_per_label(graph(KBET_NEIGHBORS), judged.batch, judged.label)
    return {name: float(value) for name, value in found.items()}
