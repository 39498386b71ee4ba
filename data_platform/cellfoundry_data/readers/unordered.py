"""Rows of a matrix whose entries come in any order, in bounded memory.

Entries are appended to one temporary file, piece by piece, each piece sorted by ranges of rows with the offsets of
those ranges kept; a block of rows is then one slice of each piece. 12 bytes of disk an entry. The file has no name, so
it is gone when the process ends, however it ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import DataError
from .checks import check_range

MAX_RANGES = 2**12
"""Ranges of rows: 32 kB of offsets for each piece of entries."""
MIN_RANGE_ROWS = 64

_ENTRY = np.dtype([("row", "<u4"), ("column", "<i4"), ("value", "<f4")])

Entries: TypeAlias = "tuple[npt.NDArray[np.integer], npt.NDArray[np.integer], npt.NDArray[np.float32]]"


@contextmanager
def rows_of_entries(
    pieces: Iterable[Entries], shape: tuple[int, int], start: int, stop: int
) -> Iterator[Callable[[int, int], sp.csr_matrix]]:
    """Sort entries (rows, columns, values) by row; gives a reader of the rows [start, stop).

    The reader takes (low, high) of rows of the matrix and returns float32 CSR, columns in the order of the pieces.

    Raises:
        ValueError: an index outside ``shape``.
        DataError: the temporary folder is full.
    """
    with tempfile.TemporaryFile(buffering=0) as file:
        spilled = _SpilledEntries(file, shape[1], start, stop)
        for rows, columns, values in pieces:
            check_range(rows, shape[0], "row")
            check_range(columns, shape[1], "column")
            wanted = (rows >= start) & (rows < stop)
            if not wanted.all():
                rows, columns, values = rows[wanted], columns[wanted], values[wanted]
            if len(rows):
                spilled.add((rows, columns, values))
        yield spilled.read


class _SpilledEntries:
    """Entries of rows [start, stop) in a file."""

    def __init__(self, file: BinaryIO, n_columns: int, start: int, stop: int) -> None:
        self._file = file
        self._n_columns = n_columns
        self._start = start
        self._range_rows = max(MIN_RANGE_ROWS, -(-(stop - start) // MAX_RANGES))
        self._n_ranges = -(-(stop - start) // self._range_rows)
        self._offsets: list[
            npt.NDArray[np.int64]
        ] = []  # of each piece: entry of the file where a range begins
        self._size = 0

    def add(self, entries: Entries) -> None:
        """Append one piece."""
        rows, columns, values = entries
        rows = (rows - self._start).astype(np.uint32)
        of_range = (rows // self._range_rows).astype(np.uint16)  # 16 bits: numpy sorts these by radix
        order = np.argsort(of_range, kind="stable")
        records = np.empty(len(order), _ENTRY)
        records["row"], records["column"], records["value"] = rows[order], columns[order], values[order]
        counts = np.bincount(of_range, minlength=self._n_ranges)
        self._offsets.append(self._size + np.concatenate([[0], np.cumsum(counts)]))
        self._size += len(records)
        self._write(records.view(np.uint8).data)

    def read(self, low: int, high: int) -> sp.csr_matrix:
        """Rows [low, high)."""
        low, high = low - self._start, high - self._start
        first, last = low // self._range_rows, -(-high // self._range_rows)
        slices = [self._slice(offsets[first], offsets[last]) for offsets in self._offsets]
        entries = np.concatenate([np.zeros(0, _ENTRY), *slices])
        entries = entries[(entries["row"] >= low) & (entries["row"] < high)]
        # Sorted by hand, because scipy's conversion would add up repeated entries, and hide a negative one.
        rows = entries["row"] - np.uint32(low)
        entries = entries[np.argsort(rows.astype(np.uint16) if high - low < 2**16 else rows, kind="stable")]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=high - low))])
        return sp.csr_matrix(
            (np.ascontiguousarray(entries["value"]), np.ascontiguousarray(entries["column"]), indptr),
            shape=(high - low, self._n_columns),
        )

    def _slice(self, first: int, last: int) -> npt.NDArray[np.void]:
        self._file.seek(int(first) * _ENTRY.itemsize)
        return np.fromfile(self._file, _ENTRY, int(last - first))

    def _write(self, data: memoryview) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise DataError(
                f"the temporary folder {tempfile.gettempdir()} cannot take the {self._size:,} entries that are sorted "
                f"by cell there, 12 bytes each ({error.strerror}); make room, or set TMPDIR to another folder."
            ) from error
