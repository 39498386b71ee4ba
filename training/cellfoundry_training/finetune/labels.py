"""An obs column as what a head learns: class numbers, or finite numbers.

Legend: C cells of the source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellfoundry_model.head import Task
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.settings import nearest

MIN_CLASS_CELLS = 3
"""Cells a class needs: one each to train, to stop by and to judge."""

LARGEST = float(np.finfo(np.float32).max)
"""Numbers beyond float32 are refused: errors of such a size have no square in float64."""


@dataclass(frozen=True)
class Labels:
    """A label for every cell of a source.

    Attributes:
        column: the obs column.
        task: "classification" or "regression".
        classes: names of the classes, sorted; none for regression.
        value_C: int64 class numbers, or float64 numbers; of no meaning where there is no label.
        has_label_C: bool.
    """

    column: str
    task: Task
    classes: tuple[str, ...]
    value_C: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    has_label_C: npt.NDArray[np.bool_]


def read_labels(obs: pd.DataFrame, column: str, task: Task | None, source: str) -> Labels:
    """The labels in ``obs[column]``; a missing value or empty text is no label.

    Args:
        obs: one row a cell, indexed by name.
        column: of ``obs``.
        task: None takes regression for numbers, and classification for anything else.
        source: what messages call it.

    Raises:
        TrainingError: no such column, no label in it, or what is no finite real number where numbers are needed.
    """
    if column not in obs.columns:
        columns = [str(name) for name in obs.columns]
        hint = nearest(column, columns) if columns else "; its obs has no columns"
        raise TrainingError(f"{source}: no obs column {column!r}{hint}")
    given = obs[column]
    if isinstance(given, pd.DataFrame):
        raise TrainingError(
            f"{source}: obs has {given.shape[1]} columns {column!r}; rename all but one of them"
        )
    has_label_C = (given.notna() & (given.astype(str).str.strip() != "")).to_numpy(dtype=bool)
    if not has_label_C.any():
        raise TrainingError(
            f"{source}: obs column {column!r} is empty for all {len(obs):,} cells; name another column"
        )
    is_number = pd.api.types.is_numeric_dtype(given) and not pd.api.types.is_bool_dtype(given)
    task = task or ("regression" if is_number else "classification")
    if task == "regression":
        return Labels(column, task, (), _numbers(given, has_label_C, source), has_label_C)
    names = _names(given[has_label_C])
    classes, number = np.unique(names, return_inverse=True)
    value_C = np.full(len(obs), -1, dtype=np.int64)
    value_C[has_label_C] = number
    return Labels(column, task, tuple(classes.tolist()), value_C, has_label_C)


def without_rare_classes(labels: Labels) -> tuple[Labels, dict[str, int]]:
    """The labels without those of classes that have fewer than MIN_CLASS_CELLS cells, and these with their cells."""
    if labels.task == "regression":
        return labels, {}
    cells_K = np.bincount(labels.value_C[labels.has_label_C], minlength=len(labels.classes))
    common_K = cells_K >= MIN_CLASS_CELLS
    number_K = np.cumsum(common_K) - 1
    kept_C = labels.has_label_C.copy()
    kept_C[kept_C] = common_K[labels.value_C[kept_C]]
    value_C = np.full_like(labels.value_C, -1)
    value_C[kept_C] = number_K[labels.value_C[kept_C]]
    names = np.array(labels.classes, dtype=object)
    rare = dict(zip(names[~common_K].tolist(), cells_K[~common_K].tolist(), strict=True))
    return replace(labels, classes=tuple(names[common_K]), value_C=value_C, has_label_C=kept_C), rare


def _names(labels: pd.Series) -> npt.NDArray[np.str_]:
    """Labels as text; whole numbers that a missing value turned into floats lose their ".0"."""
    if pd.api.types.is_float_dtype(labels) and (labels % 1 == 0).all():
        labels = labels.astype(np.int64)
    return labels.astype(str).to_numpy(dtype=np.str_)


def _numbers(labels: pd.Series, has_label_C: npt.NDArray[np.bool_], source: str) -> npt.NDArray[np.float64]:
    given = labels.astype(object)
    real = given.mask(given.map(lambda value: isinstance(value, complex | np.complexfloating)))
    numbers = pd.to_numeric(real, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad_C = has_label_C & ~(np.abs(numbers) <= LARGEST)
    if bad_C.any():
        cell = int(np.argmax(bad_C))
        value, name = labels.iloc[cell], labels.index[cell]
        shown = repr(value) if isinstance(value, str) else str(value)
        where = f"{source}: obs column {labels.name!r} holds {shown} in row {cell} ({name})"
        if isinstance(value, str):
            raise TrainingError(
                f"{where}, and regression needs numbers; use --task classification or another column"
            )
        raise TrainingError(
            f"{where}, and regression needs real numbers between -{LARGEST:.2g} and {LARGEST:.2g}; "
            "correct it or empty it"
        )
    return numbers
