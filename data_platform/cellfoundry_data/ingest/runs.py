"""Runs: spilled cells in files that are sorted by shuffle key, so that a bucket is one slice of each run.

A run is three files: ``.cells`` (Arrow: keys, obs, entries before and in each cell), ``.genes`` and ``.counts``
(plain numbers, 2 bytes each where the vocabulary and the counts fit, else 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellfoundry_data.batch import CellBatch

RUN_ENTRIES = 2**25
"""Entries after which a run is written: 268 MB as read, and 134 MB while they are put in order."""

BYTES_PER_ENTRY = 4
"""Gene and count together; 6 in runs with fractions or a count over 65,535, 8 with over 65,536 genes."""


@dataclass
class RunWriter:
    """Collects cells block by block and writes them as runs of about ``RUN_ENTRIES`` entries.

    Attributes:
        folder: where the runs go, numbered from 0.
        n_genes: size of the vocabulary.
        whole: counts are whole numbers.
        runs: runs written.
    """

    folder: Path
    n_genes: int
    whole: bool
    runs: int = 0
    _blocks: list[tuple[CellBatch, npt.NDArray[np.int64]]] = field(default_factory=list)
    _cells: list[pa.Table] = field(default_factory=list)
    _entries: int = 0

    def add(self, block: CellBatch, rows: npt.NDArray[np.int64], cells: pa.Table) -> None:
        """Take ``rows`` of ``block``; ``cells`` holds their ``shuffle_key`` and what else belongs to each."""
        if not len(rows):
            return
        nnz = np.diff(block.indptr)[rows].astype(np.uint32)
        self._blocks.append((block, rows))
        self._cells.append(cells.append_column("nnz", pa.array(nnz)))
        self._entries += int(nnz.sum(dtype=np.int64))
        if self._entries >= RUN_ENTRIES:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a run."""
        if not self._blocks:
            return
        cells = pa.concat_tables(self._cells).combine_chunks()
        order = np.argsort(cells["shuffle_key"].to_numpy())
        cells = cells.take(order).combine_chunks()
        starts = row_starts(cells["nnz"].to_numpy())
        destination = np.empty(len(order), np.int64)
        destination[order] = starts[:-1]

        genes = np.empty(starts[-1], np.uint16 if self.n_genes <= 2**16 else np.uint32)
        counts = np.empty(starts[-1], self._counts_type())
        first = 0
        for block, rows in self._blocks:
            last = first + len(rows)
            place_rows(
                block.indptr[rows],
                block.indptr[rows + 1],
                block.gene_ids,
                block.counts,
                destination[first:last],
                genes,
                counts,
            )
            first = last
        self._write(cells.append_column("start", pa.array(starts[:-1])), genes, counts)
        self._blocks, self._cells, self._entries = [], [], 0
        self.runs += 1

    def _counts_type(self) -> type[np.generic]:
        if not self.whole:
            return np.float32
        largest = max(block.counts.max(initial=0) for block, _ in self._blocks)
        return np.uint16 if largest < 2**16 else np.uint32

    def _write(self, cells: pa.Table, genes: npt.NDArray[Any], counts: npt.NDArray[Any]) -> None:
        run = self.folder / f"{self.runs:04d}"
        cells = cells.replace_schema_metadata({"genes": genes.dtype.str, "counts": counts.dtype.str})
        with pa.ipc.new_file(run.with_suffix(".cells"), cells.schema) as writer:
            writer.write_table(cells)
        run.with_suffix(".genes").write_bytes(genes.data)
        run.with_suffix(".counts").write_bytes(counts.data)


@dataclass(frozen=True)
class RunSlice:
    """The cells of a run that belong to one bucket, in the order of their shuffle keys.

    Attributes:
        cells: (cells,), the columns of the run.
        genes: uint16 or uint32, (nnz,).
        counts: uint16, uint32 or float32, (nnz,).
    """

    cells: pa.Table
    genes: npt.NDArray[Any]
    counts: npt.NDArray[Any]


def read_slice(run: Path, low: int, high: int) -> RunSlice:
    """The cells with ``low`` <= shuffle key < ``high`` (up to 2^64) of the run at ``run``, its path without
    suffix.
    """
    table = pa.ipc.open_file(pa.memory_map(str(run.with_suffix(".cells")))).read_all()
    keys = table["shuffle_key"].chunk(0).to_numpy()
    first = int(np.searchsorted(keys, np.uint64(low)))
    last = int(np.searchsorted(keys, np.uint64(high - 1), side="right"))
    # A copy: a view would keep the run's map open, and there may be more runs than a process may open files.
    cells = table.take(np.arange(first, last))
    start = cells["start"][0].as_py() if len(cells) else 0
    stop = cells["start"][-1].as_py() + cells["nnz"][-1].as_py() if len(cells) else 0
    genes, counts = (
        _read_numbers(run.with_suffix(f".{name}"), table.schema.metadata[name.encode()].decode(), start, stop)
        for name in ("genes", "counts")
    )
    return RunSlice(cells, genes, counts)


def merge(slices: list[RunSlice]) -> tuple[CellBatch, pa.Table]:
    """The cells of ``slices`` in the order of their shuffle keys; row ids count from 0."""
    cells = pa.concat_tables([piece.cells for piece in slices]).combine_chunks()
    order = np.argsort(cells["shuffle_key"].to_numpy())
    lengths = cells["nnz"].to_numpy()
    cells = cells.take(order).combine_chunks()
    indptr = row_starts(lengths[order])
    destination = np.empty(len(order), np.int64)
    destination[order] = indptr[:-1]

    gene_ids, counts = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    first = 0
    for piece in slices:
        last = first + len(piece.cells)
        starts = row_starts(lengths[first:last])
        place_rows(
            starts[:-1], starts[1:], piece.genes, piece.counts, destination[first:last], gene_ids, counts
        )
        first = last
    return CellBatch(indptr, gene_ids, counts, np.arange(len(order), dtype=np.int64)), cells


def row_starts(lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Offsets of rows of these lengths, int64, (rows + 1,)."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


@numba.njit(nogil=True, cache=True)
def place_rows(
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    genes: npt.NDArray[Any],
    counts: npt.NDArray[Any],
    destination: npt.NDArray[np.int64],
    genes_out: npt.NDArray[Any],
    counts_out: npt.NDArray[Any],
) -> None:
    """Copy entries ``starts[i]:stops[i]`` to ``destination[i]`` of the outputs, in the outputs' types."""
    for row in range(len(starts)):
        start, stop, to = starts[row], stops[row], destination[row]
        end = to + stop - start
        # Slices, and a loop an array: LLVM turns each loop into vector code, 3 times as fast.
        row_genes, row_genes_out = genes[start:stop], genes_out[to:end]
        for entry in range(len(row_genes)):
            row_genes_out[entry] = row_genes[entry]
        row_counts, row_counts_out = counts[start:stop], counts_out[to:end]
        for entry in range(len(row_counts)):
            row_counts_out[entry] = row_counts[entry]


def _read_numbers(path: Path, dtype: str, start: int, stop: int) -> npt.NDArray[Any]:
    # Read, not mapped: mapped pages would count as the worker's memory for as long as any of them is used.
    kind = np.dtype(dtype)
    return np.fromfile(path, kind, count=stop - start, offset=start * kind.itemsize)
