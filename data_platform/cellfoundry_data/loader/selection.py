"""Which cells take part: a bit a cell, from the train/validation split and from filters on obs columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cellfoundry_data.errors import DataError
from cellfoundry_data.loader.obs import ObsColumn
from cellfoundry_data.store import Store
from cellfoundry_data.store.cell_keys import in_validation

Split = Literal["train", "validation"]
Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

CHUNKS_AT_ONCE = 16_384
"""A million cells: bounds what is unpacked at a time."""


class Selection:
    """A set of a store's cells, one bit a cell.

    Args:
        cells: bool, (cells,).
    """

    def __init__(self, cells: Bools) -> None:
        self._bits = np.packbits(cells)

    def __len__(self) -> int:
        """Cells in the set."""
        return int(np.bitwise_count(self._bits).sum(dtype=np.int64))

    def holds(self, rows: Int64) -> Bools:
        """Which of ``rows`` are in the set."""
        return (self._bits[rows >> 3] >> (7 - (rows & 7)).astype(np.uint8)) & 1 == 1

    def cells(self, n_cells: int) -> Bools:
        """Bool, (n_cells,): whether each cell is in the set."""
        return np.unpackbits(self._bits, count=n_cells).view(np.bool_)


def select(
    store: Store,
    *,
    split: Split | None,
    validation_share: float,
    split_by: str | None,
    where: Mapping[str, Any] | None,
) -> Selection | None:
    """The cells of a split that pass all filters; None where neither is asked for, so every cell.

    Args:
        store: the cells.
        split: side of the split.
        validation_share: share of the cells, or of the groups, in the validation split.
        split_by: obs column whose groups stay together; None to judge each cell by its own key.
        where: what obs columns must hold: a value, a list of values (None for "missing"), or a pair
            (low, high) of numbers, both included.

    Raises:
        DataError: an obs column that the store lacks, a condition that does not fit it, no cell left.
    """
    chosen: Bools | None = None
    for name, condition in (where or {}).items():
        passes = _passes(ObsColumn.read(store, name), name, condition)
        if not passes.any():
            raise DataError(f"no cell of {store.path} has {name} in {condition!r}: relax that filter.")
        chosen = passes if chosen is None else chosen & passes
    if split is not None:
        inside = np.concatenate([np.zeros(0, bool), *_validation(store, validation_share, split_by)])
        if split == "train":
            inside = ~inside
        chosen = inside if chosen is None else chosen & inside
    if chosen is None:
        return None
    if not chosen.any():
        side = f"the {split} split" if split else "the whole"
        raise DataError(
            f"no cell of {side} of {store.path} is left: relax the filters or change validation_share."
        )
    return Selection(chosen)


def _validation(store: Store, share: float, split_by: str | None) -> Iterator[Bools]:
    """Which cells belong to the validation split, part by part in row order."""
    if split_by is None:
        chunks = store.n_chunks
        for start in range(0, chunks, CHUNKS_AT_ONCE):
            keys = store.chunk_cell_keys(np.arange(start, min(start + CHUNKS_AT_ONCE, chunks)))
            yield in_validation(keys, share)
    else:
        values, codes = ObsColumn.read(store, split_by).coded()
        yield in_validation(np.array([group_key(value) for value in values], np.uint64), share)[codes]


def group_key(value: object) -> int:
    """64-bit key of a group of cells, from the text of its value; cells without a value are one group."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers is read as floats where some are missing
    text = "" if value is None else str(value)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _passes(column: ObsColumn, name: str, condition: object) -> Bools:
    """Which cells of a column fulfil a condition."""
    values = column.values
    numeric = column.codes is None and values.dtype.kind in "iuf"
    if isinstance(condition, tuple):
        if len(condition) != 2 or not all(_is_number(bound) for bound in condition):
            raise DataError(
                f"the filter on {name} must be a value, a list, or a pair (low, high) of numbers."
            )
        if not numeric:
            raise DataError(
                f"the obs column {name} holds no numbers: filter it by a value or a list of values."
            )
        return (values >= condition[0]) & (values <= condition[1])
    wanted = condition if isinstance(condition, list) else [condition]
    for value in wanted:
        _check_kind(value, numeric, values, name)
    passing = np.zeros(len(values), bool)
    for value in wanted:
        if value is None and numeric:
            passing |= values != values
        else:
            passing |= np.array([held is None for held in values]) if value is None else values == value
    return passing if column.codes is None else passing[column.codes]


def _check_kind(value: object, numeric: bool, values: npt.NDArray[Any], name: str) -> None:
    """Raise DataError for a value that no cell could hold: comparing it would silently leave nothing."""
    if value is None:
        return
    boolean = values.dtype == bool or (
        values.dtype == object and any(isinstance(held, bool) for held in values)
    )
    fits = (
        isinstance(value, bool | np.bool_)
        if boolean
        else _is_number(value)
        if numeric
        else isinstance(value, str)
    )
    if not fits:
        kind = "true or false" if boolean else "numbers" if numeric else "text"
        raise DataError(f"the obs column {name} holds {kind}, so it can not be filtered by {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
