"""Cells to bytes and back: gene ids as differences, counts as bytes, both with escapes
(docs/store-format.md).

0.94 bytes an entry after zstd on real-like counts, against 2.4 for 16-bit counts with 32-bit ids. Numba
without the GIL: a row is decoded straight into its place in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store.encoded_rows import EncodedRows, encode_rows, row_starts
from cellfoundry_data.store.format import ESCAPE, Values

# What ``problem_of`` answers.
WELL_FORMED, GENES_NOT_ASCENDING, NO_COUNT, NO_VALUE = range(4)

# What the decoders answer.
DECODED, TOO_FEW_ESCAPES, TOO_FEW_ENTRIES, GENE_OUT_OF_RANGE, OUTSIDE = range(5)


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


@numba.njit(nogil=True, cache=True)
def decode_genes(
    gene_delta: npt.NDArray[np.uint8],
    escapes: npt.NDArray[np.uint32],
    row_nnz: npt.NDArray[np.uint32],
    destination: npt.NDArray[np.int64],
    n_genes: int,
    gene_ids: npt.NDArray[np.int32],
) -> int:
    """Decode the genes of one chunk's rows, row ``i`` to ``gene_ids[destination[i]:]``.

    A negative destination leaves the row out. Answers DECODED, or why the bytes are not those of a store:
    nothing outside the arrays is ever touched.
    """
    start = np.int64(0)
    used = np.int64(0)
    for row in range(len(row_nnz)):
        stop = start + np.int64(row_nnz[row])
        if stop > len(gene_delta):
            return TOO_FEW_ENTRIES
        if destination[row] >= 0 and destination[row] > len(gene_ids) - (stop - start):
            return OUTSIDE
        deltas = gene_delta[start:stop]
        start = stop
        if destination[row] < 0:
            for entry in range(len(deltas)):
                used += deltas[entry] == ESCAPE
            continue
        row_genes = gene_ids[destination[row] : destination[row] + len(deltas)]
        gene = np.int32(0)
        for entry in range(len(deltas)):
            delta = np.int32(deltas[entry])
            if delta == ESCAPE:
                if used >= len(escapes):
                    return TOO_FEW_ESCAPES
                if gene + np.int64(escapes[used]) >= n_genes:
                    return GENE_OUT_OF_RANGE
                delta = np.int32(escapes[used])
                used += 1
            gene += delta
            row_genes[entry] = gene
        if gene >= n_genes:
            return GENE_OUT_OF_RANGE
    return DECODED


@numba.njit(nogil=True, cache=True)
def decode_counts(
    count: npt.NDArray[np.uint8],
    escapes: npt.NDArray[np.uint32],
    row_nnz: npt.NDArray[np.uint32],
    destination: npt.NDArray[np.int64],
    counts: npt.NDArray[np.float32],
) -> int:
    """Decode the counts of one chunk's rows; see ``decode_genes``."""
    start = np.int64(0)
    used = np.int64(0)
    for row in range(len(row_nnz)):
        stop = start + np.int64(row_nnz[row])
        if stop > len(count):
            return TOO_FEW_ENTRIES
        if destination[row] >= 0 and destination[row] > len(counts) - (stop - start):
            return OUTSIDE
        row_counts = count[start:stop]
        start = stop
        if destination[row] < 0:
            for entry in range(len(row_counts)):
                used += row_counts[entry] == ESCAPE
            continue
        row_values = counts[destination[row] : destination[row] + len(row_counts)]
        largest = np.uint8(0)
        for entry in range(len(row_counts)):
            largest = max(largest, row_counts[entry])
            row_values[entry] = np.float32(row_counts[entry])
        if largest == ESCAPE:
            for entry in range(len(row_counts)):
                if row_counts[entry] == ESCAPE:
                    if used >= len(escapes):
                        return TOO_FEW_ESCAPES
                    row_values[entry] = np.float32(escapes[used])
                    used += 1
    return DECODED


@numba.njit(nogil=True, cache=True)
def place_values(
    value: npt.NDArray[np.uint8],
    row_nnz: npt.NDArray[np.uint32],
    destination: npt.NDArray[np.int64],
    values: npt.NDArray[np.uint8],
) -> int:
    """Copy the float32 values of one chunk's rows, all as bytes; see ``decode_genes``."""
    start = np.int64(0)
    for row in range(len(row_nnz)):
        stop = start + np.int64(row_nnz[row])
        if 4 * stop > len(value):
            return TOO_FEW_ENTRIES
        if destination[row] >= 0 and destination[row] > len(values) // 4 - (stop - start):
            return OUTSIDE
        if destination[row] >= 0:
            first = 4 * destination[row]
            values[first : first + 4 * (stop - start)] = value[4 * start : 4 * stop]
        start = stop
    return DECODED
