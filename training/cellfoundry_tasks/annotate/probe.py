"""The linear probe: features of like scale, and multinomial logistic regression on them.

Components are never brought to unit variance one by one: with 5 cells a class that blows up those that hold noise
(macro-F1 of PCA-50 on 1,922 pancreas cells .96 without, .85 with it; on 2,638 PBMC .86 and .70).

Legend: C cells, W width, K components or classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

Floats = npt.NDArray[np.float32]
MOST_STEPS = 2_000


@dataclass(frozen=True)
class Basis:
    """An affine map, from one set of cells, that makes any cells' vectors features: of mean 0 and total variance 1
    over the cells it was made of.

    Attributes:
        mean_W: float32, of those cells.
        axes_KW: float32 principal axes over one common scale; None keeps the W columns.
        scale: float, of the columns where there are no axes.
    """

    mean_W: Floats
    axes_KW: Floats | None
    scale: float

    @classmethod
    def of(cls, vector_CW: Floats, components: int | None) -> Basis:
        """Made of cells (C, W); with ``components`` of their principal components, or as many as there are."""
        mean_W = vector_CW.mean(0, dtype=np.float64).astype(np.float32)
        if components is None or vector_CW.shape[1] <= components:
            return cls(mean_W, None, _norm(vector_CW - mean_W))
        components = min(components, len(vector_CW) - 1)
        found = PCA(components, svd_solver="randomized", random_state=0).fit(vector_CW)
        scale = float(np.sqrt(found.explained_variance_.sum())) or 1.0
        return cls(mean_W, (found.components_ / scale).astype(np.float32), 1.0)

    def features(self, vector_CW: Floats) -> Floats:
        """Features of cells, float32 (C, K)."""
        centred_CW: Floats = (vector_CW - self.mean_W) * np.float32(1 / self.scale)
        return centred_CW if self.axes_KW is None else centred_CW @ self.axes_KW.T


def side_by_side(blocks: Sequence[Floats]) -> Floats:
    """Blocks of features of total variance 1 each as one of total variance 1."""
    return np.concatenate([block / np.float32(np.sqrt(len(blocks))) for block in blocks], axis=1)


def _norm(centred_CW: Floats) -> float:
    return float(np.sqrt(np.square(centred_CW, dtype=np.float64).sum(1).mean())) or 1.0


class Probe:
    """Multinomial logistic regression with an L2 penalty.

    Args:
        feature_CK: float32 features of training cells, of total variance about 1.
        class_C: their class numbers.
        classes: how many classes there are; those that no training cell has are never predicted.
        regularisation: C of scikit-learn.
    """

    def __init__(
        self, feature_CK: Floats, class_C: npt.NDArray[np.int64], classes: int, regularisation: float
    ) -> None:
        self._classes = classes
        self._model = LogisticRegression(C=regularisation, max_iter=MOST_STEPS)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # a hair's breadth from the optimum is a fair probe
            self._model.fit(feature_CK.astype(np.float64), class_C)

    def scores(self, feature_CK: Floats) -> npt.NDArray[np.float64]:
        """Log-odds of each class up to a constant a cell, (C, classes); -inf where no training cell has the class."""
        found = self._model.decision_function(feature_CK.astype(np.float64))
        if found.ndim == 1:  # two classes: scikit-learn gives one column, the log-odds of the second
            found = np.stack([np.zeros_like(found), found], axis=1)
        score_CK = np.full((len(feature_CK), self._classes), -np.inf)
        score_CK[:, self._model.classes_] = found
        return score_CK
