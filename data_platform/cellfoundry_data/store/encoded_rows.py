"""Cells as the bytes that a shard holds of each: no cell's bytes depend on its neighbours.

So ingest encodes a cell once, where its counts are still in the processor's cache, and whatever comes after
moves bytes: 2 for most entries, where ids and counts as numbers take 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store.format import ESCAPE, Values

STREAMS = {
    "gene_delta": "row_nnz",
    "measured": "row_nnz",
    "gene_delta_escape": "row_gene_escapes",
    "count_escape": "row_count_escapes",
}
"""The arrays of a row's entries, and which array tells how many of them a row has."""


@dataclass(frozen=True)
class EncodedRows:
    """Cells one behind the other in each stream.

    Attributes:
        gene_delta: uint8, (nnz,); ``ESCAPE`` where the difference stands in ``gene_delta_escape``.
        measured: uint8 counts, ``ESCAPE`` where the count stands in ``count_escape``, or float32 values; (nnz,).
        gene_delta_escape: uint32, in the order of the entries that escape.
        count_escape: uint32, likewise; none for float32 values.
        row_nnz: uint32, (cells,), entries of each cell.
        row_gene_escapes: uint32, (cells,), escaped differences of each cell.
        row_count_escapes: uint32, (cells,), escaped counts of each cell.
    """

    gene_delta: npt.NDArray[np.uint8]
    measured: npt.NDArray[Any]
    gene_delta_escape: npt.NDArray[np.uint32]
    count_escape: npt.NDArray[np.uint32]
    row_nnz: npt.NDArray[np.uint32]
    row_gene_escapes: npt.NDArray[np.uint32]
    row_count_escapes: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.row_nnz)

    @property
    def nnz(self) -> int:
        """Entries of all cells."""
        return len(self.gene_delta)


def row_starts(lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Offsets of rows of these lengths, int64, (rows + 1,)."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def encode_rows(cells: CellBatch, rows: npt.NDArray[np.int64], values: Values = "counts") -> EncodedRows:
    """Encode ``rows`` of ``cells``, in which ``encoding.problem_of`` finds nothing wrong.

    Args:
        cells: the batch.
        rows: int64, which of its rows, in the order wanted.
        values: "counts" as bytes with escapes, "float32" as they are.
    """
    nnz = np.diff(cells.indptr)[rows].astype(np.uint32)
    entries = int(nnz.sum(dtype=np.int64))
    counted = values == "counts"
    # Room for the worst case: the system gives pages only where something is written.
    gene_escapes = np.empty(entries, np.uint32)
    count_escapes = np.empty(entries if counted else 0, np.uint32)
    gene_delta = np.empty(entries, np.uint8)
    measured: npt.NDArray[Any] = np.empty(entries, np.uint8 if counted else np.float32)
    row_gene_escapes, row_count_escapes = np.zeros(len(rows), np.uint32), np.zeros(len(rows), np.uint32)
    _encode_genes(cells.indptr, rows, cells.gene_ids, gene_delta, gene_escapes, row_gene_escapes)
    if counted:
        _encode_counts(cells.indptr, rows, cells.counts, measured, count_escapes, row_count_escapes)
    else:
        starts = row_starts(nnz)
        _place(cells.indptr[rows], cells.indptr[rows + 1], cells.counts, starts, measured)
    return EncodedRows(
        gene_delta,
        measured,
        gene_escapes[: row_gene_escapes.sum(dtype=np.int64)].copy(),
        count_escapes[: row_count_escapes.sum(dtype=np.int64)].copy(),
        nnz,
        row_gene_escapes,
        row_count_escapes,
    )


def in_order(pieces: Sequence[EncodedRows], order: npt.NDArray[np.int64]) -> EncodedRows:
    """The rows of all ``pieces``, at least one, counted through, in the order given; a row is copied once."""
    lengths = {
        name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in set(STREAMS.values())
    }
    streams = {}
    for stream, name in STREAMS.items():
        starts = row_starts(lengths[name][order])
        destination = np.empty(len(order), np.int64)
        destination[order] = starts[:-1]
        streams[stream] = np.empty(starts[-1], getattr(pieces[0], stream).dtype)
        first = 0
        for piece in pieces:
            last = first + len(piece)
            bounds = row_starts(lengths[name][first:last])
            _place(bounds[:-1], bounds[1:], getattr(piece, stream), destination[first:last], streams[stream])
            first = last
    return EncodedRows(**streams, **{name: length[order] for name, length in lengths.items()})


@numba.njit(nogil=True, cache=True)
def _encode_genes(
    indptr: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    gene_ids: npt.NDArray[np.int32],
    gene_delta: npt.NDArray[np.uint8],
    escapes: npt.NDArray[np.uint32],
    row_escapes: npt.NDArray[np.uint32],
) -> None:
    used, out = np.int64(0), np.int64(0)
    for position in range(len(rows)):
        genes = gene_ids[indptr[rows[position]] : indptr[rows[position] + 1]]
        deltas = gene_delta[out : out + len(genes)]
        out += len(genes)
        first = used
        largest = np.int32(0)
        # The first gene counts from 0; the others without a carried value, so that the loop becomes vector code.
        for entry in range(len(genes)):
            delta = genes[entry] - (genes[entry - 1] if entry else np.int32(0))
            largest = max(largest, delta)
            deltas[entry] = np.uint8(min(delta, np.int32(ESCAPE)))
        if largest >= ESCAPE:
            for entry in range(len(genes)):
                if deltas[entry] == ESCAPE:
                    escapes[used] = np.uint32(genes[entry] - (genes[entry - 1] if entry else np.int32(0)))
                    used += 1
        row_escapes[position] = used - first


@numba.njit(nogil=True, cache=True)
def _encode_counts(
    indptr: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    counts: npt.NDArray[np.float32],
    stream: npt.NDArray[np.uint8],
    escapes: npt.NDArray[np.uint32],
    row_escapes: npt.NDArray[np.uint32],
) -> None:
    used, out = np.int64(0), np.int64(0)
    for position in range(len(rows)):
        row = counts[indptr[rows[position]] : indptr[rows[position] + 1]]
        written = stream[out : out + len(row)]
        out += len(row)
        first = used
        largest = np.int32(0)  # of integers: the largest of floats would have to mind NaN, one by one
        for entry in range(len(row)):
            count = np.int32(min(row[entry], np.float32(ESCAPE)))
            largest = max(largest, count)
            written[entry] = np.uint8(count)
        if largest >= ESCAPE:
            for entry in range(len(row)):
                if written[entry] == ESCAPE:
                    escapes[used] = np.uint32(row[entry])
                    used += 1
        row_escapes[position] = used - first


@numba.njit(nogil=True, cache=True)
def _place(
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    source: npt.NDArray[Any],
    destination: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
) -> None:
    """Copy ``source[starts[i]:stops[i]]`` to ``out[destination[i]:]``."""
    for row in range(len(starts)):
        piece = source[starts[row] : stops[row]]
        target = out[destination[row] : destination[row] + len(piece)]
        for entry in range(len(piece)):
            target[entry] = piece[entry]
