"""Columns of an obs table that colour a plot: few values each, as categories and codes."""

from __future__ import annotations

from typing import TypedDict

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

MIN_VALUES, MAX_VALUES = 2, 50
MAX_COLUMNS = 32
MAX_TEXT = 100  # characters of a name or value


class LabelColumn(TypedDict):
    """``categories`` (values,) and each cell's position in them, ``codes`` (cells,), -1 where it has none."""

    categories: list[str]
    codes: list[int]


def label_columns(obs: pd.DataFrame) -> dict[str, LabelColumn]:
    """The first 32 columns, of any kind but numbers, with 2 to 50 values; long texts are cut."""
    columns: dict[str, LabelColumn] = {}
    for position, name in enumerate(obs.columns):
        values = obs.iloc[:, position]
        if is_numeric_dtype(values) and not is_bool_dtype(values):
            continue
        labels = values.astype("category").cat.remove_unused_categories().cat
        if MIN_VALUES <= len(labels.categories) <= MAX_VALUES:
            texts = [str(category)[:MAX_TEXT] for category in labels.categories]
            columns.setdefault(str(name)[:MAX_TEXT], {"categories": texts, "codes": labels.codes.tolist()})
        if len(columns) == MAX_COLUMNS:
            break
    return columns
