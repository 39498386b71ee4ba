"""Held-out scores of training cells: each by a probe that has not seen it.

Legend: C training cells, K classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score

from cellfoundry_tasks.annotate.probe import Floats, Probe

FOLDS = 5

Classes = npt.NDArray[np.int64]


def folds_of(class_C: Classes, seed: int) -> npt.NDArray[np.int64]:
    """A fold, int64 (C,), for each cell; a class's cells are spread evenly, so of two each fold leaves one at least."""
    fold_C = np.empty(len(class_C), dtype=np.int64)
    for number in np.unique(class_C):
        cells = np.random.default_rng([seed, int(number)]).permutation(np.flatnonzero(class_C == number))
        fold_C[cells] = np.arange(len(cells)) % FOLDS
    return fold_C


def heldout_scores(
    feature_CK: Floats, class_C: Classes, classes: int, regularisation: float, seed: int
) -> npt.NDArray[np.float64]:
    """Scores of every cell (C, classes) by the probe of the folds that it is not in."""
    score_CK = np.empty((len(class_C), classes))
    fold_C = folds_of(class_C, seed)
    for fold in np.unique(fold_C):
        kept = fold_C != fold
        probe = Probe(feature_CK[kept], class_C[kept], classes, regularisation)
        score_CK[~kept] = probe.scores(feature_CK[~kept])
    return score_CK


def macro_f1(class_C: Classes, called_C: Classes) -> float:
    """F1 averaged over the classes that cells have; rare ones weigh as much as common ones."""
    return float(f1_score(class_C, called_C, labels=np.unique(class_C), average="macro", zero_division=0.0))
