"""Which labelled cells train, which decide when to stop, and which judge the result.

Legend: C cells that have a label and counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfoundry_training.errors import TrainingError
from cellfoundry_training.finetune.labels import MIN_CLASS_CELLS, Labels

MIN_REGRESSION_CELLS = 10
STRATA = 10
"""Ranges of a number, each with equally many cells, that are split alike."""

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Positions of cells, ascending, int64; no cell is in two parts."""

    train: Positions
    validation: Positions
    test: Positions


def stratified_split(
    stratum_C: npt.NDArray[np.int64], *, validation_share: float, test_share: float, seed: int
) -> Split:
    """Draw the parts from each stratum; a part gets its share, rounded, and at least one cell.

    Args:
        stratum_C: int64; a stratum's cells are split alike, and each has MIN_CLASS_CELLS of them or more.
        validation_share: of a stratum.
        test_share: of a stratum.
        seed: the draw depends on it and on ``stratum_C`` only.
    """
    parts: dict[str, list[Positions]] = {"train": [], "validation": [], "test": []}
    for stratum in np.unique(stratum_C):
        cells = np.flatnonzero(stratum_C == stratum)
        cells = np.random.default_rng([seed, int(stratum)]).permutation(cells)
        test = max(1, round(test_share * len(cells)))
        validation = max(1, min(round(validation_share * len(cells)), len(cells) - test - 1))
        parts["test"].append(cells[:test])
        parts["validation"].append(cells[test : test + validation])
        parts["train"].append(cells[test + validation :])
    return Split(**{name: np.sort(np.concatenate(drawn)) for name, drawn in parts.items()})


def strata(labels: Labels, source: str) -> npt.NDArray[np.int64]:
    """What the split draws from: each labelled cell's class, or its range of numbers.

    TrainingError where the labelled cells are too few or too alike to learn from.
    """
    value = labels.value_C[labels.has_label_C]
    if labels.task == "classification":
        if len(labels.classes) < 2:
            found = f"only {labels.classes[0]!r} has" if labels.classes else "none has"
            raise TrainingError(
                f"{source}: classification needs two classes of {MIN_CLASS_CELLS} or more cells with counts, and in "
                f"obs column {labels.column!r} {found} as many; name another column"
            )
        return value.astype(np.int64)
    if len(value) < MIN_REGRESSION_CELLS:
        raise TrainingError(
            f"{source}: regression needs {MIN_REGRESSION_CELLS} cells with counts and a number, and obs column "
            f"{labels.column!r} has {len(value):,}; name another column"
        )
    if value.min() == value.max():
        raise TrainingError(
            f"{source}: obs column {labels.column!r} is {value[0]:g} in all cells, so there is nothing to learn; "
            "name another column"
        )
    ranges = min(STRATA, len(value) // MIN_CLASS_CELLS)
    rank = np.empty(len(value), dtype=np.int64)
    rank[np.argsort(value, kind="stable")] = np.arange(len(value))
    return rank * ranges // len(value)


def check_training_numbers(value_C: npt.NDArray[Any], column: str, source: str) -> None:
    """TrainingError where the numbers of the training cells are all the same."""
    if value_C.min() == value_C.max():
        raise TrainingError(
            f"{source}: obs column {column!r} is {value_C[0]:g} in all {len(value_C):,} training cells, so there is "
            "nothing to learn; name another column or give cells that differ more"
        )
