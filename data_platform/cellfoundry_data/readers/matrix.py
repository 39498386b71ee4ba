"""Row blocks of a matrix as files store it: CSR, CSC or dense.

Every index is checked before scipy's C code sees it. Faults raise ValueError, and
``base.reading`` names the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

DENSE_PIECE_BYTES = 2**25

RowReader = Callable[[int, int], sp.csr_matrix]


def compressed_rows(data: Any, indices: Any, indptr: Any, n_columns: int) -> RowReader:
    """Reader of rows [start, stop) of a CSR triple of arrays on disk; only ``indptr`` is held in memory."""
    offsets = np.asarray(indptr[:]).astype(np.int64)
    _check_offsets(offsets, min(data.shape[0], indices.shape[0]))

    def read(start: int, stop: int) -> sp.csr_matrix:
        low, high = offsets[start], offsets[stop]
        return checked_csr(data[low:high], indices[low:high], offsets[start : stop + 1] - low, n_columns)

    return read


def compressed_columns(data: Any, indices: Any, indptr: Any, n_rows: int, n_columns: int) -> RowReader:
    """Reader of rows of a CSC triple, which is loaded and converted once (16 bytes a non-zero at most)."""
    by_gene = compressed_rows(data, indices, indptr, n_rows)(0, n_columns)
    by_cell = by_gene.T.tocsr()
    return lambda start, stop: by_cell[start:stop]


def dense_rows(array: Any) -> RowReader:
    """Reader of rows of a 2-D array on disk or in memory, in pieces of at most 32 MiB."""
    piece = max(1, DENSE_PIECE_BYTES // max(1, array.shape[1] * array.dtype.itemsize))

    def read(start: int, stop: int) -> sp.csr_matrix:
        pieces = [
            sp.csr_matrix(as_float32(np.asarray(array[low : min(low + piece, stop)])))
            for low in range(start, stop, piece)
        ]
        return sp.vstack(pieces, format="csr")

    return read


def checked_csr(data: Any, indices: Any, indptr: npt.NDArray[np.int64], n_columns: int) -> sp.csr_matrix:
    """A float32 CSR matrix, or ValueError where offsets or column indices point outside of it."""
    indices = np.asarray(indices)
    _check_offsets(indptr, min(len(data), len(indices)))
    if len(indices) and not (indices.min() >= 0 and indices.max() < n_columns):
        bad = int(indices.min() if indices.min() < 0 else indices.max())
        raise ValueError(f"a column index is {bad}, outside 0..{n_columns - 1}")
    return sp.csr_matrix((as_float32(data), indices, indptr), shape=(len(indptr) - 1, n_columns))


def as_float32(values: Any) -> npt.NDArray[np.float32]:
    """Numbers as float32 (too large ones become inf, which the checks of values report)."""
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"the values are of type {values.dtype}, not numbers")
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def _check_offsets(offsets: npt.NDArray[np.int64], n_entries: int) -> None:
    valid = (
        len(offsets) > 0 and offsets[0] == 0 and (np.diff(offsets) >= 0).all() and offsets[-1] <= n_entries
    )
    if not valid:
        raise ValueError("the row offsets do not fit the stored entries")
