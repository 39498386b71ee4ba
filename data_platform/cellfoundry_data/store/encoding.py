"""Cells to bytes: gene ids as differences, counts as bytes, both with escapes (docs/store-format.md).

0.94 bytes an entry after zstd on real-like counts, against 2.4 for 16-bit counts with 32-bit ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store.encoded_rows import EncodedRows, encode_rows, row_starts
from cellfoundry_data.store.format import Values

# What ``problem_of`` answers.
WELL_FORMED, GENES_NOT_ASCENDING, NO_COUNT, NO_VALUE = range(4)


@dataclass(frozen=True)
class EncodedCells:
    """Cells as the arrays of one shard; every array has a row a chunk, padded with zeros.

    Attributes:
        arrays: by name of the array, (chunks, width).
        chunk_cells: uint32, (chunks,).
        chunk_nnz_used: uint32, (chunks,).
    """

    arrays: dict[str, npt.NDArray[Any]]
    chunk_cells: npt.NDArray[np.uint32]
    chunk_nnz_used: npt.NDArray[np.uint32]


def pack_rows(indptr: npt.NDArray[np.int64], chunk_nnz: int) -> npt.NDArray[np.int64]:
    """First row of each chunk, and the number of rows at the end: rows in order, as many to a chunk as fit
    whole; a row larger than ``chunk_nnz`` has a chunk of its own.
    """
    rows = len(indptr) - 1
    firsts = [0]
    while firsts[-1] < rows:
        limit = indptr[firsts[-1]] + chunk_nnz
        firsts.append(max(firsts[-1] + 1, int(np.searchsorted(indptr, limit, side="right")) - 1))
    return np.array(firsts, np.int64)


def encode(
    cells: CellBatch, keys: npt.NDArray[np.uint64], chunk_nnz: int, values: Values = "counts"
) -> EncodedCells:
    """Encode cells that ``problem_of`` finds nothing wrong with; see ``chunked``."""
    return chunked(encode_rows(cells, np.arange(len(cells)), values), keys, chunk_nnz)


def chunked(rows: EncodedRows, keys: npt.NDArray[np.uint64], chunk_nnz: int) -> EncodedCells:
    """Encoded cells as the arrays of a shard.

    Args:
        rows: at least one.
        keys: uint64, (cells,).
        chunk_nnz: entries of a chunk; see ``pack_rows``.
    """
    indptr = row_starts(rows.row_nnz)
    first_rows = pack_rows(indptr, chunk_nnz)
    bounds = indptr[first_rows]
    arrays: dict[str, npt.NDArray[Any]] = {
        "gene_delta": _padded(rows.gene_delta, bounds),
        "gene_delta_escape": _padded(rows.gene_delta_escape, row_starts(rows.row_gene_escapes)[first_rows]),
    }
    if rows.measured.dtype == np.uint8:
        arrays["count"] = _padded(rows.measured, bounds)
        arrays["count_escape"] = _padded(rows.count_escape, row_starts(rows.row_count_escapes)[first_rows])
    else:
        arrays["value"] = _padded(rows.measured, bounds)
    arrays["row_nnz"] = _padded(rows.row_nnz, first_rows)
    arrays["cell_key"] = _padded(keys, first_rows)
    return EncodedCells(arrays, np.diff(first_rows).astype(np.uint32), np.diff(bounds).astype(np.uint32))


@numba.njit(nogil=True, cache=True)
def problem_of(
    indptr: npt.NDArray[np.int64],
    gene_ids: npt.NDArray[np.int32],
    counts: npt.NDArray[np.float32],
    whole: bool,
) -> int:
    """Why cells cannot be encoded, as counts (``whole``) or as values; WELL_FORMED where they can."""
    for row in range(len(indptr) - 1):
        before = np.int32(-1)
        for entry in range(indptr[row], indptr[row + 1]):
            if gene_ids[entry] <= before:
                return GENES_NOT_ASCENDING
            before = gene_ids[entry]
    for count in counts:
        # Negated, so that NaN is refused; the next float32 above the largest count is 2^32.
        if whole:
            if not (count >= 0 and count < 2.0**32 and count == np.floor(count)):
                return NO_COUNT
        elif not (count > 0 and count < np.inf):
            return NO_VALUE
    return WELL_FORMED


def _padded(values: npt.NDArray[Any], bounds: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The pieces ``bounds[i]:bounds[i + 1]`` as rows, zeros behind each."""
    rows = np.zeros((len(bounds) - 1, _width(bounds)), values.dtype)
    for row, first, last in zip(rows, bounds[:-1], bounds[1:], strict=True):
        row[: last - first] = values[first:last]
    return rows


def _width(bounds: npt.NDArray[np.int64]) -> int:
    """Elements of the longest piece, at least one."""
    return max(1, int(np.diff(bounds).max()))
