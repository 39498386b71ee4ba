"""Confidence that means what it says: temperature scaling, and how far it is off.

Legend: C cells, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 10
LOG_TEMPERATURES = (-3.0, 3.0)

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]


def temperature(score_CK: Floats, class_C: Classes) -> float:
    """What log-odds of held-out cells have to be divided by for the likelihood of their classes to be largest
    (Guo et al. 2017, "On calibration of modern neural networks").
    """

    def loss(log_temperature: float) -> float:
        likelihood_CK = log_softmax(score_CK / np.exp(log_temperature), axis=1)
        return -float(likelihood_CK[np.arange(len(class_C)), class_C].mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").x))


def probabilities(score_CK: Floats, scale: float) -> Floats:
    """Probability of each class (C, K) at a temperature."""
    return softmax(score_CK / scale, axis=1)


@dataclass(frozen=True)
class Reliability:
    """How often cells of a confidence are called rightly.

    Attributes:
        confidence: mean of each bin that holds cells.
        accuracy: share of its cells that are called rightly.
        cells: in it.
        expected_error: mean over cells of the distance between the two (ECE), 10 bins of equal width.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    cells: tuple[int, ...]
    expected_error: float


def reliability(probability_CK: Floats, class_C: Classes) -> Reliability:
    """Of held-out cells, from the probability of the class each is called."""
    confidence_C = probability_CK.max(1)
    right_C = probability_CK.argmax(1) == class_C
    bin_C = np.minimum((confidence_C * BINS).astype(np.int64), BINS - 1)
    rows = [
        (float(confidence_C[bin_C == number].mean()), float(right_C[bin_C == number].mean()), int(cells))
        for number, cells in enumerate(np.bincount(bin_C, minlength=BINS))
        if cells
    ]
    confidence, accuracy, cells_in = zip(*rows, strict=True)
    error = np.average(np.abs(np.subtract(confidence, accuracy)), weights=cells_in)
    return Reliability(confidence, accuracy, cells_in, float(error))
