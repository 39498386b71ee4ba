"""The obs and var tables of a stored AnnData, any range of their rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata.io import read_elem

from ..errors import DataError
from .complete import CompleteArray
from .matrix import whole_array
from .names import as_texts

_CURRENT = "0.2.0"
"""Layout of a table since anndata 0.7.6; a table in the one before is read as a whole."""


def is_array(node: Any) -> bool:
    """Whether an HDF5 or Zarr node is an array and no group."""
    return hasattr(node, "dtype")


def n_rows(table: Any) -> int:
    """Rows of a stored table."""
    return int(_index(table).shape[0])


def row_names(table: Any) -> list[str]:
    """The table's index, as text."""
    return as_texts(whole_array(CompleteArray(_index(table))))


def text_columns(table: Any) -> list[list[str]]:
    """The columns of text: any of them may hold the genes' ids or symbols."""
    frame = read_rows(table, 0, n_rows(table))
    return name_columns(frame)


def name_columns(frame: pd.DataFrame) -> list[list[str]]:
    """The columns of a table in memory that hold text."""
    return [
        column.astype(str).tolist()
        for _, column in frame.items()
        if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(column.dtype)
    ]


def read_rows(table: Any, start: int, stop: int) -> pd.DataFrame:
    """Rows [start, stop), indexed by their names as text; ValueError where a column has another length."""
    if str(table.attrs.get("encoding-version")) != _CURRENT:
        frame = read_elem(table).iloc[start:stop]
        return frame.set_axis(frame.index.astype(str))
    index, size = _index(table), n_rows(table)
    names = pd.Index(as_texts(CompleteArray(index)[start:stop]), dtype=object)
    columns = {str(name): _column(table[name], start, stop, size) for name in table.attrs["column-order"]}
    return pd.DataFrame(columns, index=names)


def check_table(root: Any, key: str, path: str) -> None:
    """DataError unless ``root`` holds a table at ``key``."""
    if is_array(root[key]):
        raise DataError(
            f"{path}: {key!r} has the layout of anndata before 0.7; re-save it with a newer anndata."
        )


def _index(table: Any) -> Any:
    index = table[table.attrs["_index"]]
    if not is_array(index) or len(index.shape) != 1:
        raise ValueError(f"the index of {table.name} is not a list of names")
    return index


def _column(node: Any, start: int, stop: int, size: int) -> Any:
    encoding = node.attrs.get("encoding-type", "array")
    if encoding == "categorical":
        codes = _sized(node["codes"], size)[start:stop]
        categories = node["categories"]
        labels = whole_array(categories)
        if labels.dtype.kind not in "biuf":
            labels = np.array(as_texts(labels), dtype=object)
        return pd.Categorical.from_codes(
            codes, pd.Index(labels), ordered=bool(node.attrs.get("ordered", False))
        )
    if encoding in ("nullable-integer", "nullable-boolean", "nullable-string-array"):
        values, mask = _sized(node["values"], size)[start:stop], _sized(node["mask"], size)[start:stop]
        if encoding == "nullable-string-array":
            values = np.array(as_texts(values), dtype=object)
        column = pd.Series(np.asarray(values)).astype(pd.api.types.pandas_dtype(_nullable(encoding, values)))
        return column.mask(np.asarray(mask, bool)).array
    if not is_array(node):
        return read_elem(node)[start:stop]
    values = np.asarray(_sized(node, size)[start:stop])
    return values if values.dtype.kind in "biuf" else np.array(as_texts(values), dtype=object)


def _nullable(encoding: str, values: npt.NDArray[Any]) -> str:
    if encoding == "nullable-integer":
        return str(values.dtype).replace("int", "Int").replace("uI", "UI")
    return "boolean" if encoding == "nullable-boolean" else "string"


def _sized(array: Any, size: int) -> Any:
    if array.shape != (size,):
        raise ValueError(f"{array.name} has shape {tuple(array.shape)} in a table of {size} rows")
    return array
