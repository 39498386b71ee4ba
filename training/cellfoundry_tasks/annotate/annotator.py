"""A classifier for new cells: a probe of all labelled cells with calibrated confidence and limits of the known.

Legend: C cells, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cellfoundry_tasks.annotate.calibration import probabilities, temperature
from cellfoundry_tasks.annotate.config import AnnotateConfig
from cellfoundry_tasks.annotate.folds import folds_of, heldout_scores, macro_f1
from cellfoundry_tasks.annotate.labelled import Labelled
from cellfoundry_tasks.annotate.novelty import Distance, Limits, Numbers
from cellfoundry_tasks.annotate.probe import Floats, Probe
from cellfoundry_tasks.annotate.splits import few_shot
from cellfoundry_tasks.annotate.vectors import FeatureMap, Vectors

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Called:
    """What is said of cells.

    Attributes:
        class_C: int64, the likeliest class.
        probability_CK: float64, calibrated.
        raw_CK: float64, the logistic regression's own.
        distance_C: float64, to the nearest class.
        unknown_C: bool, no class fits.
        unsure_C: bool, confidence alone says so.
    """

    class_C: Classes
    probability_CK: npt.NDArray[np.float64]
    raw_CK: npt.NDArray[np.float64]
    distance_C: Numbers
    unknown_C: npt.NDArray[np.bool_]
    unsure_C: npt.NDArray[np.bool_]

    @property
    def confidence_C(self) -> Numbers:
        """Probability of the class called, float64."""
        found: Numbers = self.probability_CK.max(1)
        return found


class Annotator:
    """Learns from all cells given; calibration and limits come from cross-validation within them.

    Args:
        vectors: what a model says of labelled cells.
        class_C: int64 class numbers.
        classes: how many there are.
        kind: one of ``vectors.kinds``.
        config: the run.

    Attributes:
        temperature: of the confidence.
        limits: of the known.
    """

    def __init__(
        self, vectors: Vectors, class_C: Classes, classes: int, kind: str, config: AnnotateConfig
    ) -> None:
        self._map = FeatureMap.of(kind, vectors, config.components)
        feature_CK = self._map.features(vectors)
        score_CK = heldout_scores(feature_CK, class_C, classes, config.regularisation, seed=0)
        self.temperature = temperature(score_CK, class_C)
        confidence_C = probabilities(score_CK, self.temperature).max(1)
        self.limits = Limits.of(confidence_C, _heldout_distance(feature_CK, class_C), config.known_share)
        self._probe = Probe(feature_CK, class_C, classes, config.regularisation)
        self._distance = Distance(feature_CK, class_C)

    def __call__(self, vectors: Vectors) -> Called:
        """Annotate cells that it has not learned from."""
        feature_CK = self._map.features(vectors)
        score_CK = self._probe.scores(feature_CK)
        probability_CK = probabilities(score_CK, self.temperature)
        confidence_C, distance_C = probability_CK.max(1), self._distance.of(feature_CK)
        return Called(
            probability_CK.argmax(1),
            probability_CK,
            probabilities(score_CK, 1.0),
            distance_C,
            self.limits.unknown(confidence_C, distance_C),
            confidence_C < self.limits.confidence,
        )


def _heldout_distance(feature_CK: Floats, class_C: Classes) -> Numbers:
    """Distance of every cell to the classes of the folds that it is not in."""
    distance_C, fold_C = np.empty(len(class_C)), folds_of(class_C, seed=0)
    for fold in np.unique(fold_C):
        kept = fold_C != fold
        distance_C[~kept] = Distance(feature_CK[kept], class_C[kept]).of(feature_CK[~kept])
    return distance_C


def few_shot_scores(labelled: Labelled, vectors: Vectors, config: AnnotateConfig) -> dict[str, float]:
    """Kind of features -> macro-F1 of probes of the fewest cells a class that are asked for, on others, in the mean
    over seeds; all of the cells that ``judge`` learns from, so that those it judges by have no part in a choice.
    """
    train = few_shot(labelled, config, "all", seed=0).train
    labelled = replace(labelled, class_C=labelled.class_C[train], heldout_C=None)
    vectors = vectors[train]
    return {
        kind: _few_shot_score(
            FeatureMap.of(kind, vectors, config.components).features(vectors), labelled, config
        )
        for kind in vectors.kinds
    }


def _few_shot_score(feature_CK: Floats, labelled: Labelled, config: AnnotateConfig) -> float:
    scores = []
    for seed in range(config.seeds):
        split = few_shot(labelled, config, config.shots[0], seed)
        class_C, classes = labelled.class_C, len(labelled.classes)
        probe = Probe(feature_CK[split.train], class_C[split.train], classes, config.regularisation)
        scores.append(macro_f1(class_C[split.test], probe.scores(feature_CK[split.test]).argmax(1)))
    return float(np.mean(scores))


def names_of(called: Called, classes: Sequence[str]) -> npt.NDArray[np.str_]:
    """Name of the class that each cell is called, (C,)."""
    return np.asarray(classes, dtype=str)[called.class_C]
