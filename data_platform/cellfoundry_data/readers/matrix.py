"""Row blocks of a matrix as files store it: CSR, CSC or dense.

Every index is checked before scipy's C code sees it, and nothing is allocated by what a header claims. Faults raise
ValueError, and ``base.reading`` names the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from .checks import as_float32, as_integers, check_offsets, check_range
from .unordered import Entries, rows_of_entries

DENSE_PIECE_BYTES = 2**25
PIECE_ENTRIES = 2**21
REPEATS = 2**16
"""Entries a row may have beyond one a column: some tools write a gene twice, none writes a gene thousands of times."""

RowReader = Callable[[int, int], sp.csr_matrix]


def whole_array(array: Any) -> npt.NDArray[Any]:
    """All of a 1-D array on disk, in pieces, so that memory grows with what is stored and not with its shape."""
    pieces = [array[low : low + PIECE_ENTRIES] for low in range(0, array.shape[0], PIECE_ENTRIES)]
    return np.concatenate(pieces) if pieces else np.zeros(0, array.dtype)


def row_offsets(indptr: Any, n_rows: int, n_entries: int) -> npt.NDArray[np.int64]:
    """The checked offsets of a compressed matrix, int64, (rows + 1,)."""
    if indptr.shape != (n_rows + 1,):
        raise ValueError("the number of row offsets does not fit the shape")
    offsets = as_integers(whole_array(indptr), "row offsets").astype(np.int64)
    check_offsets(offsets, n_entries)
    return offsets


def compressed_rows(data: Any, indices: Any, indptr: Any, n_rows: int, n_columns: int) -> RowReader:
    """Reader of rows [start, stop) of a CSR triple of arrays on disk; only ``indptr`` is held in memory."""
    offsets = row_offsets(indptr, n_rows, stored_entries(data, indices))
    _check_row_lengths(offsets, n_columns)

    def read(start: int, stop: int) -> sp.csr_matrix:
        low, high = offsets[start], offsets[stop]
        return checked_csr(data[low:high], indices[low:high], offsets[start : stop + 1] - low, n_columns)

    return read


def compressed_columns(data: Any, indices: Any, offsets: npt.NDArray[np.int64]) -> Iterator[Entries]:
    """(rows, columns, values) of a CSC triple, piece by piece in the order of its columns."""
    for low in range(0, int(offsets[-1]), PIECE_ENTRIES):
        high = min(low + PIECE_ENTRIES, int(offsets[-1]))
        edges = np.clip(offsets, low, high)
        of_column = edges[1:] - edges[:-1]
        columns = np.repeat(np.arange(len(of_column), dtype=np.int32), of_column)
        yield as_integers(indices[low:high], "row indices"), columns, as_float32(data[low:high])


@contextmanager
def column_major_rows(
    data: Any, indices: Any, indptr: Any, shape: tuple[int, int], start: int, stop: int
) -> Iterator[RowReader]:
    """Reader of rows [start, stop) of a CSC triple of arrays on disk, through a temporary file."""
    offsets = row_offsets(indptr, shape[1], stored_entries(data, indices))
    with rows_of_entries(compressed_columns(data, indices, offsets), shape, start, stop) as read:
        yield read


def dense_rows(array: Any) -> RowReader:
    """Reader of rows of a 2-D array on disk or in memory, in pieces of about 32 MiB, whole chunks if it has some."""
    as_float32(np.zeros(0, array.dtype))
    row_bytes = max(1, array.shape[1] * array.dtype.itemsize)
    piece = max(1, DENSE_PIECE_BYTES // row_bytes)
    chunk_rows = (getattr(array, "chunks", None) or (1,))[0]
    if chunk_rows * row_bytes <= 4 * DENSE_PIECE_BYTES:
        piece = max(1, piece // chunk_rows) * chunk_rows

    def read(start: int, stop: int) -> sp.csr_matrix:
        edges = sorted({start, *range(start // piece * piece + piece, stop, piece), stop})
        pieces = [sp.csr_matrix(as_float32(np.asarray(array[low:high]))) for low, high in pairwise(edges)]
        return sp.vstack(pieces, format="csr")

    return read


def checked_csr(data: Any, indices: Any, indptr: npt.NDArray[np.int64], n_columns: int) -> sp.csr_matrix:
    """A float32 CSR matrix, or ValueError where offsets or column indices point outside of it."""
    indices = as_integers(indices, "column indices")
    check_offsets(indptr, min(len(data), len(indices)))
    check_range(indices, n_columns, "column")
    return sp.csr_matrix((as_float32(data), indices, indptr), shape=(len(indptr) - 1, n_columns))


def stored_entries(data: Any, indices: Any) -> int:
    """How many entries a sparse matrix has both values and indices of; ValueError unless they are lists."""
    if len(data.shape) != 1 or len(indices.shape) != 1:
        raise ValueError("the values and indices of a sparse matrix must have one dimension")
    return int(min(data.shape[0], indices.shape[0]))


def _check_row_lengths(offsets: npt.NDArray[np.int64], n_columns: int) -> None:
    longest = int(np.diff(offsets).max(initial=0))
    if longest > n_columns + REPEATS:
        raise ValueError(f"one row claims {longest:,} entries in {n_columns:,} columns")
