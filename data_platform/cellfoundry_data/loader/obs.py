"""One obs column of a whole store in little memory: text as a small code a cell, numbers as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from cellfoundry_data.errors import DataError
from cellfoundry_data.store import Store

Codes = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class ObsColumn:
    """Values of all cells of a store, in row order.

    Attributes:
        values: without ``codes`` a value a cell, (cells,), missing ones NaN, or None in an object array; with
            ``codes`` the distinct values, the first of them None for "missing".
        codes: (cells,), position in ``values``, in the smallest unsigned type.
    """

    values: npt.NDArray[Any]
    codes: Codes | None

    @classmethod
    def read(cls, store: Store, name: str) -> ObsColumn:
        """The column ``name``, shard after shard.

        Raises:
            DataError: the store has no such column, or it holds whole numbers of 2^53 or more and misses some,
                which no array of numbers could hold.
        """
        has = store.obs_of(0).column_names
        if name not in has:
            raise DataError(f"{store.path} has no obs column {name!r}: it has {', '.join(has)}.")
        known: dict[Any, int] = {}
        parts: list[npt.NDArray[Any]] = []
        for shard in range(len(store.first_rows) - 1):
            column = _column(store, shard, name)
            if pat.is_dictionary(column.type):
                values = [known.setdefault(value, len(known) + 1) for value in column.dictionary.to_pylist()]
                codes = _smallest(np.array([0, *values]), len(known))
                parts.append(codes[pc.add(column.indices.cast(pa.int64()), 1).fill_null(0).to_numpy()])
            else:
                parts.append(column.to_numpy(zero_copy_only=False))
        if not pat.is_dictionary(column.type):
            numbers = np.concatenate(parts)
            if pat.is_integer(column.type) and numbers.dtype.kind == "f":
                _check_exact(numbers, store, name)
            return cls(numbers, None)
        return cls(_objects([None, *known]), np.concatenate(parts))

    def at(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Values of the cells at ``rows``, (rows,)."""
        return self.values[rows] if self.codes is None else self.values[self.codes[rows]]

    def coded(self) -> tuple[list[Any], Codes]:
        """Distinct values, None for "missing" first, and each cell's position among them, whatever the type."""
        if self.codes is not None:
            return self.values.tolist(), self.codes
        present = np.array(self.values == self.values)
        if self.values.dtype == object:
            present &= self.values != np.array(None)
        distinct, inverse = np.unique(self.values[present], return_inverse=True)
        codes = np.zeros(len(self.values), np.min_scalar_type(len(distinct)))
        codes[present] = inverse + 1
        return [None, *distinct.tolist()], codes


def _column(store: Store, shard: int, name: str) -> pa.Array:
    """A shard's part of a column; text as a dictionary."""
    column = store.obs_of(shard, columns=[name])[name].combine_chunks()
    return column.dictionary_encode() if pat.is_string(column.type) else column


def _check_exact(values: npt.NDArray[np.float64], store: Store, name: str) -> None:
    """Raise DataError where float64, which has NaN for "missing", would round whole numbers such as ids."""
    if np.nanmax(np.abs(values), initial=0.0) >= 2.0**53:
        raise DataError(
            f"the obs column {name} of {store.path} lacks a value for some cells and holds whole numbers of 2^53 or "
            "more, whose last digits would be lost: ingest the column as text."
        )


def _smallest(codes: npt.NDArray[np.int64], largest: int) -> Codes:
    return codes.astype(np.min_scalar_type(largest))


def _objects(values: list[Any]) -> npt.NDArray[Any]:
    array = np.empty(len(values), object)
    array[:] = values
    return array
