"""The model's best probe at one shot: which cells it mistakes for which, and what its confidence is worth.

Legend: C labelled cells, K features or classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, f1_score

from cellfoundry_tasks.annotate.calibration import probabilities, reliability, temperature
from cellfoundry_tasks.annotate.folds import heldout_scores, macro_f1
from cellfoundry_tasks.annotate.probe import Floats, Probe
from cellfoundry_tasks.annotate.result import Detail
from cellfoundry_tasks.annotate.splits import FewShot


def detail_of(
    features: Mapping[str, Floats],
    counts_CK: Floats,
    class_C: npt.NDArray[np.int64],
    classes: Sequence[str],
    splits: Sequence[FewShot],
    shot: str,
    regularisation: float,
) -> Detail:
    """Of ``splits``, one a seed. Which probe is best is decided within the training cells of all of them. So the test
    cells have no part in the choice where all seeds test on the same; of drawn ones some train for another seed.

    Args:
        features: key -> features (C, K) of each of the model's probes.
        counts_CK: the counts' principal components, to compare with.
        class_C: int64 class numbers.
        classes: their names.
        splits: of the shot.
        shot: its label.
        regularisation: C of the probes.
    """
    inner = {
        key: _heldout(feature, class_C, len(classes), splits, regularisation)
        for key, feature in features.items()
    }
    chosen = {
        key: float(
            np.mean(
                [macro_f1(class_C[s.train], score.argmax(1)) for s, score in zip(splits, scores, strict=True)]
            )
        )
        for key, scores in inner.items()
    }
    probe = max(chosen, key=lambda key: chosen[key])
    scales = [
        temperature(score, class_C[split.train]) for split, score in zip(splits, inner[probe], strict=True)
    ]
    scores = [_test_scores(features[probe], class_C, len(classes), split, regularisation) for split in splits]
    rival = [_test_scores(counts_CK, class_C, len(classes), split, regularisation) for split in splits]
    true = np.concatenate([class_C[split.test] for split in splits])
    called = np.concatenate(scores).argmax(1)
    numbers = np.arange(len(classes))
    own_f1, rival_f1 = (
        f1_score(true, found, labels=numbers, average=None, zero_division=0.0).tolist()
        for found in (called, np.concatenate(rival).argmax(1))
    )
    return Detail(
        shot,
        probe,
        chosen,
        {name: (own, other) for name, own, other in zip(classes, own_f1, rival_f1, strict=True)},
        tuple(tuple(row) for row in confusion_matrix(true, called, labels=numbers).tolist()),
        reliability(np.concatenate([probabilities(score, 1.0) for score in scores]), true),
        reliability(
            np.concatenate(
                [probabilities(score, scale) for score, scale in zip(scores, scales, strict=True)]
            ),
            true,
        ),
        float(np.mean(scales)),
    )


def _heldout(
    feature_CK: Floats,
    class_C: npt.NDArray[np.int64],
    classes: int,
    splits: Sequence[FewShot],
    regularisation: float,
) -> list[npt.NDArray[np.float64]]:
    return [
        heldout_scores(feature_CK[split.train], class_C[split.train], classes, regularisation, seed)
        for seed, split in enumerate(splits)
    ]


def _test_scores(
    feature_CK: Floats, class_C: npt.NDArray[np.int64], classes: int, split: FewShot, regularisation: float
) -> npt.NDArray[np.float64]:
    probe = Probe(feature_CK[split.train], class_C[split.train], classes, regularisation)
    return probe.scores(feature_CK[split.test])
