"""A score over repeated splits: its mean and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """Mean of a score over splits, and its 95 % confidence interval; without one where there is one split."""

    mean: float
    low: float | None
    high: float | None
    splits: int

    def __str__(self) -> str:
        """``0.958 ± 0.006``."""
        return f"{self.mean:.3f}" if self.high is None else f"{self.mean:.3f} ± {self.high - self.mean:.3f}"


def interval(scores: Sequence[float]) -> Interval:
    """Student's t interval of the mean. Splits share cells, so it is somewhat too narrow
    (Nadeau & Bengio 2003, "Inference for the generalization error").
    """
    mean = float(np.mean(scores))
    if len(scores) < 2:
        return Interval(mean, None, None, len(scores))
    half = float(stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores))
    return Interval(mean, mean - half, mean + half, len(scores))
