"""Decoding rows in any order into reused memory, and cutting what was decoded into batches that are views.

Fresh memory for a window (100 MB) costs 1.5 us a cell in page faults. A buffer is used again once nobody refers
to it, so a batch that is still held never changes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.loader.obs import ObsColumn
from cellfoundry_data.store import Store

Int64 = npt.NDArray[np.int64]
Buffer = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]

POOLED = 3
"""Windows whose memory is kept: one is handed out, one decoded, and a user may hold the last batch of one."""

ROOM = 1.125
"""A new buffer is larger than asked for, so that the next window, which differs by 1 or 2 %, fits."""

CHUNKS_AT_ONCE = 256
"""Compressed chunks in memory at a time, 24 MB: draws from rare categories touch thousands."""


class BufferPool:
    """Memory of windows, gene ids and counts. Pickles as an empty pool."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._idle = _references(_new_buffer(0))

    def __reduce__(self) -> tuple[Any, ...]:
        return BufferPool, ()

    def take(self, size: int) -> Buffer:
        """Two arrays of at least ``size`` elements: nobody gets them again while a view of them is alive.

        A numpy view, a torch tensor and a memoryview each refer to the array that owns the memory, so its
        count of references says whether there is one.
        """
        idle = [buffer for buffer in self._buffers if _references(buffer) == self._idle]
        for buffer in idle:
            if len(buffer[0]) >= size:
                return buffer[0], buffer[1]
        # Too small, or held by the user, who may well keep it for ever: forget one rather than grow.
        if len(self._buffers) == POOLED:
            forgotten = idle[0] if idle else self._buffers[0]
            self._buffers = [buffer for buffer in self._buffers if buffer is not forgotten]
        new = _new_buffer(int(size * ROOM))
        self._buffers.append(new)
        return new[0], new[1]


def _new_buffer(size: int) -> Buffer:
    return np.empty(size, np.int32), np.empty(size, np.float32)


def _references(buffer: Buffer) -> int:
    return max(sys.getrefcount(buffer[0]), sys.getrefcount(buffer[1]))


def row_nnz(store: Store, rows: Int64) -> npt.NDArray[np.uint32]:
    """Genes of the cells at ``rows``, uint32, (rows,)."""
    chunks, places = _locate(store, rows)
    return store.chunk_row_nnz(chunks)[places]


def decode(store: Store, rows: Int64, obs: Mapping[str, ObsColumn], pool: BufferPool) -> CellBatch:
    """The cells at ``rows``, in that order, repeats allowed; every chunk they lie in is decompressed once.

    Raises:
        DataError: a shard whose bytes are not those that were written.
    """
    chunks, places = _locate(store, rows)
    indptr = np.zeros(len(rows) + 1, np.int64)
    lengths = store.chunk_row_nnz(chunks)
    np.cumsum(lengths[places], out=indptr[1:])
    cells = store.chunk_cells(chunks)
    destination = np.full(cells.sum(), -1, np.int64)
    destination[places] = indptr[:-1]

    gene_buffer, count_buffer = pool.take(indptr[-1])
    gene_ids, counts = gene_buffer[: indptr[-1]], count_buffer[: indptr[-1]]
    before = np.concatenate([[0], np.cumsum(cells)])
    for first in range(0, len(chunks), CHUNKS_AT_ONCE):
        part = chunks[first : first + CHUNKS_AT_ONCE]
        rows_of_part = slice(before[first], before[first + len(part)])
        store.decode_chunks(part, lengths[rows_of_part], destination[rows_of_part], gene_ids, counts)
    # A row that was asked for twice went to its last place.
    for place in np.flatnonzero(destination[places] != indptr[:-1]):
        start, stop = indptr[place : place + 2]
        source = destination[places[place]]
        gene_ids[start:stop] = gene_ids[source : source + stop - start]
        counts[start:stop] = counts[source : source + stop - start]
    return CellBatch(indptr, gene_ids, counts, rows, {name: column.at(rows) for name, column in obs.items()})


def _locate(store: Store, rows: Int64) -> tuple[Int64, Int64]:
    """The chunks that hold ``rows``, ascending, and where each row is among all rows of these chunks."""
    chunk_of = store.chunks_of(rows)
    chunks, which = np.unique(chunk_of, return_inverse=True)
    cells = store.chunk_cells(chunks)
    return chunks, rows - store.chunk_first_row[chunk_of] + (np.cumsum(cells) - cells)[which]


def view(cells: CellBatch, first: int, last: int) -> CellBatch:
    """The cells ``first`` to ``last - 1``, as views."""
    start, stop = cells.indptr[first], cells.indptr[last]
    return CellBatch(
        cells.indptr[first : last + 1] - start,
        cells.gene_ids[start:stop],
        cells.counts[start:stop],
        cells.row_ids[first:last],
        {name: column[first:last] for name, column in cells.obs.items()},
    )


def concatenate(head: CellBatch, tail: CellBatch) -> CellBatch:
    """The cells of both, copied."""
    return CellBatch(
        np.concatenate([head.indptr, tail.indptr[1:] + head.indptr[-1]]),
        np.concatenate([head.gene_ids, tail.gene_ids]),
        np.concatenate([head.counts, tail.counts]),
        np.concatenate([head.row_ids, tail.row_ids]),
        {name: np.concatenate([head.obs[name], tail.obs[name]]) for name in head.obs},
    )
