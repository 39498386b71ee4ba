"""Cells that none of the classes fits: too little confidence, or too far from every class.

Confidence alone misses novel types: a softmax is sure of whatever lies far out on one side. A cell is therefore unknown
where either says so, and both limits keep the same share of held-out reference cells.

Legend: C cells, R reference cells, K features, L classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfoundry_tasks.annotate.probe import Floats

SHRINKAGE = 0.1
BISECTIONS = 30

Numbers = npt.NDArray[np.float64]


class Distance:
    """Mahalanobis distance to the nearest class, all classes having the covariance of cells about their class's mean
    (Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples"), a tenth of it shrunk to a
    sphere. Where each class in turn was left out, this caught 59 and 55 % of its cells (pancreas, PBMC) at 5 % lost,
    the distance to the nearest 5 cells 33 and 22 %, and confidence 75 and 8 %.

    Args:
        feature_RK: float32 features of reference cells.
        class_R: their class numbers.
    """

    def __init__(self, feature_RK: Floats, class_R: npt.NDArray[np.int64]) -> None:
        features = feature_RK.astype(np.float64)
        self._mean_LK = np.stack([features[class_R == number].mean(0) for number in np.unique(class_R)])
        within_RK = features - self._mean_LK[np.unique(class_R, return_inverse=True)[1]]
        covariance_KK = within_RK.T @ within_RK / len(features)
        sphere = SHRINKAGE * np.trace(covariance_KK) / len(covariance_KK) or 1.0
        covariance_KK = (1 - SHRINKAGE) * covariance_KK + sphere * np.eye(len(covariance_KK))
        self._whiten_KK = np.linalg.cholesky(np.linalg.inv(covariance_KK))

    def of(self, feature_CK: Floats) -> Numbers:
        """Of any cells, float64 (C,)."""
        whitened_CK, mean_LK = feature_CK @ self._whiten_KK, self._mean_LK @ self._whiten_KK
        found: Numbers = np.min([np.linalg.norm(whitened_CK - mean_K, axis=1) for mean_K in mean_LK], axis=0)
        return found


@dataclass(frozen=True)
class Limits:
    """What a known cell keeps within.

    Attributes:
        confidence: lowest.
        distance: largest.
    """

    confidence: float
    distance: float

    @classmethod
    def of(cls, confidence_C: Numbers, distance_C: Numbers, known_share: float) -> Limits:
        """The limits that keep ``known_share`` of held-out reference cells, each criterion giving up as many."""
        low, high = known_share, 1.0  # of the share that each keeps; both together keep less
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            limits = cls._keeping(confidence_C, distance_C, middle)
            if limits.unknown(confidence_C, distance_C).mean() > 1 - known_share:
                low = middle
            else:
                high = middle
        return cls._keeping(confidence_C, distance_C, high)

    @classmethod
    def _keeping(cls, confidence_C: Numbers, distance_C: Numbers, share: float) -> Limits:
        return cls(float(np.quantile(confidence_C, 1 - share)), float(np.quantile(distance_C, share)))

    def unknown(self, confidence_C: Numbers, distance_C: Numbers) -> npt.NDArray[np.bool_]:
        """Whether each cell is beyond either limit."""
        return (confidence_C < self.confidence) | (distance_C > self.distance)
