"""The cluster level: whether cells of low depth, enhanced, fall into the clusters that they have at full depth.

Legend: C cells left after thinning, J clustered cells among them, W width of a representation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import anndata as ad
import numpy as np
import numpy.typing as npt

from cellfoundry_tasks.baselines import pca, pca_of_logs
from cellfoundry_tasks.cells import labels_of
from cellfoundry_tasks.enhance.clustering import (
    REFERENCE_RESOLUTION,
    Reference,
    cluster_scores,
    clustered,
    leiden,
    neighbour_graph,
    reference_places,
)
from cellfoundry_tasks.enhance.gene_level import KNN, MAGIC, MODEL, RAW, SCVI, TWIN, enhanced
from cellfoundry_tasks.enhance.models import Models
from cellfoundry_tasks.enhance.peers import Scvi, magic
from cellfoundry_tasks.enhance.rounds import Round
from cellfoundry_tasks.enhance.smoothing import smoothed
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.intervals import Interval, interval
from cellfoundry_tasks.representation import represent

FOLDS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
"""Of the published experiment; the one that leads back to the full depth is added."""
SMOOTHING_K = 15
MODEL_EXPRESSION = "model, expression"
FULL = "full depth"

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Panel:
    """A representation to draw.

    Attributes:
        name: of the method.
        features: float32 (J, W).
    """

    name: str
    features: Floats


@dataclass(frozen=True)
class Number:
    """Of clusters: no resolution may give the wanted one.

    Attributes:
        wanted: clusters of the reference that the thinned cells have.
        found: clusters of the representation.
    """

    wanted: int
    found: int


@dataclass
class ClusterLevel:
    """Scores of everyone's clusters.

    Attributes:
        depth: of the thinned cells.
        origin: of the reference clusters.
        reference_clusters: their number.
        cells: clustered.
        values: (method, fold, or None where there is none) -> score -> its values, one a thinning.
        numbers: the same places -> of clusters, one a thinning.
        panels: representations of the first thinning.
        panel_labels: reference clusters of their cells (J,).
    """

    depth: float
    origin: str
    reference_clusters: int
    cells: int
    values: dict[tuple[str, float | None], dict[str, list[float]]] = field(default_factory=dict)
    numbers: dict[tuple[str, float | None], list[Number]] = field(default_factory=dict)
    panels: list[Panel] = field(default_factory=list)
    panel_labels: Labels = field(default_factory=lambda: np.empty(0, dtype=str))

    def add(self, method: str, fold: float | None, features_JW: Floats, reference: Reference) -> None:
        """Cluster a representation into as many clusters as the reference has, and score them."""
        values = self.values.setdefault((method, fold), {})
        found = clustered(features_JW, reference.number)
        self.numbers.setdefault((method, fold), []).append(Number(reference.number, len(np.unique(found))))
        for key, value in cluster_scores(found, reference).items():
            values.setdefault(key, []).append(value)

    def scores(self, method: str, fold: float | None = None) -> dict[str, Interval]:
        """Means over thinnings."""
        return {key: interval(values) for key, values in self.values[method, fold].items()}


def reference_of(
    full: ad.AnnData, rows: npt.NDArray[np.int64], label: str | None
) -> tuple[npt.NDArray[np.int64], Reference]:
    """The rows that are clustered, those with a label where one is asked for, and their reference.

    Raises TaskError where it is a single cluster.
    """
    if label is None:
        places = reference_places(full[rows])
        clusters = leiden(neighbour_graph(places), REFERENCE_RESOLUTION).astype(str)
        origin = f"Leiden clusters of the full-depth cells, resolution {REFERENCE_RESOLUTION:g}"
    else:
        labels = labels_of(full, label)[rows]
        rows, clusters = rows[labels != ""], labels[labels != ""]
        origin = f"obs column {label!r}"
    if len(np.unique(clusters)) < 2:
        raise TaskError(
            f"{full.uns['source']}: of the reference clusters, {origin}, "
            f"the {len(rows)} cells to cluster have {len(np.unique(clusters))}; give more cells, or another --label"
        )
    if label is not None:
        places = reference_places(full[rows])
    return rows, Reference(clusters, places, origin)


def cluster_round(
    level: ClusterLevel,
    drawn: Round,
    reference: Reference,
    models: Models,
    scvi: Scvi | None,
    step: Callable[[], None],
) -> None:
    """Add everyone's clusters of one thinning; the model's expression, the random twin and scVI with the first only.

    ``drawn.judged`` are the clustered cells that are not empty, ``reference`` that of exactly these.
    """
    first = drawn.seed == 0
    for method, fold, features_JW in _representations(drawn, reference, models, scvi):
        level.add(method, fold, features_JW, reference)
        drawn_fold = fold is None or fold == drawn.fold
        if first and method in (FULL, RAW, MODEL, MODEL_EXPRESSION) and drawn_fold:
            level.panels.append(Panel(method, features_JW))
        step()
    if first:
        level.panel_labels = reference.clusters


def folds_to(depth: float) -> list[float]:
    """Folds at which cells of a depth are embedded, ascending: the published ones and that which leads back to the
    full depth, which may be one of them.
    """
    return sorted({*FOLDS, 1 / depth})


def steps_of_round(depth: float, seed: int, scvi: bool) -> int:
    """Representations that a round clusters."""
    return 4 + len(folds_to(depth)) + (3 + scvi if seed == 0 else 0)


def _representations(
    drawn: Round, reference: Reference, models: Models, scvi: Scvi | None
) -> Iterator[tuple[str, float | None, Floats]]:
    judged = drawn.cells[drawn.judged]
    yield FULL, None, reference.places_CL
    yield RAW, None, pca(drawn.cells)[drawn.judged]
    everyone = np.arange(drawn.cells.n_obs)
    _, _, smoothed_CG = next(smoothed(drawn.cells, everyone, (SMOOTHING_K,)))
    yield KNN, None, pca_of_logs(smoothed_CG)[drawn.judged]
    yield MAGIC, None, pca_of_logs(magic(drawn.cells, drawn.seed))[drawn.judged]
    for fold in folds_to(drawn.depth):
        yield MODEL, fold, represent(judged, models.embedding, target=f"f{fold:g}")
    if drawn.seed > 0:
        return
    yield MODEL_EXPRESSION, drawn.fold, pca_of_logs(enhanced(judged, models.expression, drawn.fold))
    for fold in (1.0, drawn.fold):
        yield TWIN, fold, represent(judged, models.embedding_twin, target=f"f{fold:g}")
    if scvi:
        yield SCVI, None, scvi.latent()[drawn.judged]
