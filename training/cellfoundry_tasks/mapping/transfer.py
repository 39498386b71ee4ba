"""Labels carried from reference cells to query cells, and how often that is right.

Legend: C cells, K components, Q query cells, R reference cells, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.neighbors import KNeighborsClassifier

from cellfoundry_tasks.intervals import Interval, interval
from cellfoundry_tasks.mapping.integration import Neighbors

Floats = npt.NDArray[np.float32]
Names = npt.NDArray[np.str_]
CONFIDENCES = (0.0, 0.5, 0.7, 0.9, 0.99)
RESAMPLES = 1000
FEWEST_BATCHES = 3
"""With fewer left-out batches the interval is over cells: Student's t of two batches says nothing."""


@dataclass(frozen=True)
class Graph:
    """A graph in the place of coordinates: lists of neighbours for LISI, and weights (C, C) for votes and UMAP."""

    neighbors: Neighbors
    weights: sp.csr_matrix


Place: TypeAlias = Floats | Graph
"""Where a method puts the cells: coordinates, float32 (C, K), or a graph."""


@dataclass(frozen=True)
class Carried:
    """Labels from other batches, (C,), "" for cells that take none, and the share of votes for it, NaN there."""

    label: Names
    confidence: npt.NDArray[np.float64]


@dataclass(frozen=True)
class TransferScore:
    """How labels carried into each query batch agree with its own.

    Attributes:
        batches: (query batch, its judged cells, accuracy, macro-F1).
        accuracy: mean over query batches.
        macro_f1: mean over query batches, each over the labels that it has or was given.
        over: what the intervals are over, "left-out batches" or "cells".
    """

    batches: tuple[tuple[str, int, float, float], ...]
    accuracy: Interval
    macro_f1: Interval
    over: str


def carry(place: Place, batch: Names, label: Names, queries: Sequence[str], neighbors: int) -> Carried:
    """Each cell of each query batch takes a label from the labelled cells of all other batches.

    With coordinates the nearest ``neighbors`` of them vote, each weighing 1 / distance; in a graph those that the cell
    is joined with, by the graph's weights.
    """
    found = Carried(np.full(len(batch), "", dtype=label.dtype), np.full(len(batch), np.nan))
    for name in queries:
        query = batch == name
        reference = ~query & (label != "")
        if isinstance(place, Graph):
            votes_QL, classes = _graph_votes(place.weights[query][:, reference], label[reference])
        else:
            classifier = KNeighborsClassifier(min(neighbors, int(reference.sum())), weights="distance")
            classifier.fit(place[reference], label[reference])
            votes_QL, classes = classifier.predict_proba(place[query]), classifier.classes_
        found.label[query] = classes[votes_QL.argmax(axis=1)]
        found.confidence[query] = votes_QL.max(axis=1)
    return found


def score(carried: Carried, batch: Names, label: Names, queries: Sequence[str], seed: int) -> TransferScore:
    """Compare carried labels with the queries' own; cells without one are not judged."""
    labels = sorted(set(label[label != ""].tolist()))
    confusions, rows = [], []
    for name in queries:
        judged = (batch == name) & (label != "")
        confusion = _confusion(label[judged], carried.label[judged], labels)
        accuracy, macro_f1 = (float(value[0]) for value in _scores(confusion[None]))
        confusions.append(confusion)
        rows.append((name, int(judged.sum()), accuracy, macro_f1))
    if len(rows) >= FEWEST_BATCHES:
        intervals = [interval([row[2] for row in rows]), interval([row[3] for row in rows])]
        over = "left-out batches"
    else:
        intervals, over = _over_cells(confusions, seed), "cells"
    return TransferScore(tuple(rows), intervals[0], intervals[1], over)


def right_by_confidence(carried: Carried, label: Names) -> tuple[tuple[float, float, float], ...]:
    """(lower bound, share of the judged cells at or above it, share of these that are right) for rising bounds."""
    judged = (label != "") & (carried.label != "")
    confidence, right = carried.confidence[judged], (carried.label == label)[judged]
    rows = []
    for bound in CONFIDENCES:
        sure = confidence >= bound
        if sure.any():
            rows.append((bound, float(sure.mean()), float(right[sure].mean())))
    return tuple(rows)


def _graph_votes(weights_QR: sp.csr_matrix, label: Names) -> tuple[npt.NDArray[np.float64], Names]:
    classes, code = np.unique(label, return_inverse=True)
    member_RL = sp.csr_matrix((np.ones(len(code)), (np.arange(len(code)), code)))
    votes_QL = (weights_QR @ member_RL).toarray()
    return votes_QL / np.maximum(votes_QL.sum(1, keepdims=True), np.finfo(np.float64).tiny), classes


def _confusion(true: Names, predicted: Names, labels: Sequence[str]) -> npt.NDArray[np.int64]:
    place = {label: number for number, label in enumerate(labels)}
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    rows = [place[label] for label in true.tolist()], [place[label] for label in predicted.tolist()]
    np.add.at(confusion, rows, 1)
    return confusion


def _scores(confusion_NLL: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Accuracy and macro-F1 of each of N confusion matrices; a label neither there nor given does not count."""
    right_NL = np.diagonal(confusion_NLL, axis1=1, axis2=2)
    both_NL = confusion_NLL.sum(1) + confusion_NLL.sum(2)
    f1_NL = np.where(both_NL > 0, 2 * right_NL / np.maximum(both_NL, 1), np.nan)
    return right_NL.sum(1) / confusion_NLL.sum((1, 2)), np.nanmean(f1_NL, axis=1)


def _over_cells(confusions: Sequence[npt.NDArray[np.int64]], seed: int) -> list[Interval]:
    """Percentile bootstrap over the query's cells: a resample of cells is a multinomial draw of the confusion."""
    rng = np.random.default_rng(seed)
    resampled, point = [], []
    for confusion in confusions:
        total, n_labels = int(confusion.sum()), len(confusion)
        draws = rng.multinomial(total, confusion.ravel() / total, size=RESAMPLES)
        resampled.append(_scores(draws.reshape(-1, n_labels, n_labels)))
        point.append(_scores(confusion[None]))
    found = []
    for place in range(2):
        low, high = np.quantile(np.mean([scores[place] for scores in resampled], axis=0), [0.025, 0.975])
        mean = float(np.mean([scores[place][0] for scores in point]))
        found.append(Interval(mean, float(low), float(high), len(confusions)))
    return found
