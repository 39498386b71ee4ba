"""How far an annotator can be trusted: on cells held out of its reference, and on a class that it has never seen.

Legend: C reference cells, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellfoundry_tasks.annotate.annotator import Annotator
from cellfoundry_tasks.annotate.calibration import Reliability, reliability
from cellfoundry_tasks.annotate.config import AnnotateConfig
from cellfoundry_tasks.annotate.folds import macro_f1
from cellfoundry_tasks.annotate.labelled import Labelled
from cellfoundry_tasks.annotate.splits import few_shot
from cellfoundry_tasks.annotate.vectors import Vectors
from cellfoundry_tasks.representation import Progress


@dataclass(frozen=True)
class LeftOut:
    """One class taken out of the reference, and an annotator of the rest.

    Attributes:
        name: the class.
        cells: its cells, none of which the annotator has seen.
        caught: share of them called unknown.
        caught_by_confidence: share that confidence alone calls so.
        lost: share of held-out cells of the other classes called unknown.
        called: the class that most of those not caught were called, and their share of its cells.
    """

    name: str
    cells: int
    caught: float
    caught_by_confidence: float
    lost: float
    called: tuple[str, float]


@dataclass(frozen=True)
class Judgement:
    """An annotator of most of the reference, judged on the rest.

    Attributes:
        train: cells it learned from.
        test: cells that judge it.
        accuracy: share of these called rightly.
        macro_f1: over classes.
        kept: share not called unknown.
        kept_accuracy: share called rightly of those kept.
        raw: reliability of uncalibrated confidence.
        calibrated: reliability of calibrated confidence.
        left_out: each class in turn; none where there are two classes, of which one alone would be left.
    """

    train: int
    test: int
    accuracy: float
    macro_f1: float
    kept: float
    kept_accuracy: float
    raw: Reliability
    calibrated: Reliability
    left_out: tuple[LeftOut, ...]


def judge(
    labelled: Labelled, vectors: Vectors, kind: str, config: AnnotateConfig, progress: Progress | None = None
) -> Judgement:
    """Hold cells of each class out, and then each class as a whole."""
    split = few_shot(labelled, config, "all", seed=0)
    class_C, classes = labelled.class_C, len(labelled.classes)
    test_C = class_C[split.test]
    called = Annotator(vectors[split.train], class_C[split.train], classes, kind, config)(vectors[split.test])
    right_C, kept_C = called.class_C == test_C, ~called.unknown_C
    left_out = []
    for number in range(classes if classes > 2 else 0):
        left_out.append(_without(number, labelled, vectors, kind, config))
        if progress:
            progress("leave a class out", number + 1, classes)
    return Judgement(
        len(split.train),
        len(split.test),
        float(right_C.mean()),
        macro_f1(test_C, called.class_C),
        float(kept_C.mean()),
        float(right_C[kept_C].mean()) if kept_C.any() else 0.0,
        reliability(called.raw_CK, test_C),
        reliability(called.probability_CK, test_C),
        tuple(left_out),
    )


def _without(number: int, labelled: Labelled, vectors: Vectors, kind: str, config: AnnotateConfig) -> LeftOut:
    """The same split without the class; axes, probe and limits have not seen it either."""
    split = few_shot(labelled, config, "all", seed=0)
    others = np.delete(np.arange(len(labelled.classes)), number)
    train = split.train[labelled.class_C[split.train] != number]
    test = split.test[labelled.class_C[split.test] != number]
    novel = np.flatnonzero(labelled.class_C == number)
    annotator = Annotator(
        vectors[train], np.searchsorted(others, labelled.class_C[train]), len(others), kind, config
    )
    found = annotator(vectors[novel])
    named = np.bincount(found.class_C[~found.unknown_C], minlength=len(others))
    return LeftOut(
        labelled.classes[number],
        len(novel),
        float(found.unknown_C.mean()),
        float(found.unsure_C.mean()),
        float(annotator(vectors[test]).unknown_C.mean()),
        (labelled.classes[others[named.argmax()]], float(named.max() / len(novel))),
    )
