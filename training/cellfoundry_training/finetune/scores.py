"""How right predictions are: of classes, and of numbers.

Legend: C cells that were held out, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ClassScore:
    """One class: of cells called it, the share that are (precision); of its cells, the share found (recall); F1."""

    name: str
    cells: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of predicted classes.

    Attributes:
        accuracy: share of cells that get their class.
        macro_f1: F1 averaged over classes, rare ones weighing as much as common ones.
        auroc: area under the ROC curve of each class against the rest, averaged over classes.
        majority_accuracy: what calling every cell the commonest class would reach.
        classes: each class.
        confusion: cells of each true class (rows) that got each class (columns), K x K.
    """

    accuracy: float
    macro_f1: float
    auroc: float
    majority_accuracy: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{100 * self.accuracy:.1f} % right ({100 * self.majority_accuracy:.1f} % by calling all the commonest), "
            f"macro-F1 {self.macro_f1:.3f}, AUROC {self.auroc:.3f}"
        )


@dataclass(frozen=True)
class RegressionScores:
    """Scores of predicted numbers.

    Attributes:
        pearson: correlation of prediction and label; None where one of them does not vary.
        r2: 1 - squared error / that of predicting the mean of these cells; negative is worse than the mean.
        mae: mean absolute error, in the label's unit.
    """

    pearson: float | None
    r2: float
    mae: float

    def __str__(self) -> str:
        """One line for people."""
        pearson = "undefined" if self.pearson is None else f"{self.pearson:.3f}"
        return f"Pearson {pearson}, R2 {self.r2:.3f}, mean absolute error {self.mae:.4g}"


def classification_scores(
    true_C: npt.NDArray[np.int64], probability_CK: npt.NDArray[np.float64], classes: tuple[str, ...]
) -> ClassificationScores:
    """Judge the likeliest class of each cell; every class must have a cell in ``true_C``."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

    numbers = np.arange(len(classes))
    called_C = probability_CK.argmax(1)
    precision, recall, f1, cells = precision_recall_fscore_support(
        true_C, called_C, labels=numbers, average=None, zero_division=0.0
    )
    each = zip(classes, cells.tolist(), precision.tolist(), recall.tolist(), f1.tolist(), strict=True)
    areas = [roc_auc_score(true_C == number, probability_CK[:, number]) for number in numbers]
    return ClassificationScores(
        float((called_C == true_C).mean()),
        float(f1.mean()),
        float(np.mean(areas)),
        float(np.bincount(true_C).max() / len(true_C)),
        tuple(ClassScore(*row) for row in each),
        tuple(tuple(row) for row in confusion_matrix(true_C, called_C, labels=numbers).tolist()),
    )


def regression_scores(
    true_C: npt.NDArray[np.floating], predicted_C: npt.NDArray[np.floating]
) -> RegressionScores:
    """Judge predicted numbers; ``true_C`` must vary for R2 to mean anything (0 otherwise)."""
    true, predicted = true_C.astype(np.float64), predicted_C.astype(np.float64)
    left, spread = np.square(true - predicted).sum(), np.square(true - true.mean()).sum()
    varies = spread > 0 and np.ptp(predicted) > 0
    return RegressionScores(
        float(np.corrcoef(true, predicted)[0, 1]) if varies else None,
        float(1 - left / spread) if spread > 0 else 0.0,
        float(np.abs(true - predicted).mean()),
    )
