"""Runs: spilled cells in files that are sorted by shuffle key, so that a bucket is one slice of each run.

A run is five files: ``.cells`` (Arrow: keys, obs, and of each stream of ``EncodedRows`` how many elements a cell has
and how many stand before it), and one of plain numbers for each stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store.encoded_rows import STREAMS, EncodedRows, encode_rows, in_order, row_starts
from cellfoundry_data.store.format import Values

RUN_ENTRIES = 2**25
"""Entries after which a run is written: 67 MB of counts, and as much again while they are put in order."""

BYTES_PER_ENTRY = {"counts": 2, "float32": 5}
"""Gene and count together; escapes, 4 bytes each, are few."""


@dataclass
class RunWriter:
    """Collects cells block by block and writes them as runs of about ``RUN_ENTRIES`` entries.

    Attributes:
        folder: where the runs go, numbered from 0.
        values: "counts" or "float32".
        runs: runs written.
    """

    folder: Path
    values: Values
    runs: int = 0
    _pieces: list[EncodedRows] = field(default_factory=list)
    _cells: list[pa.Table] = field(default_factory=list)
    _entries: int = 0

    def add(self, block: CellBatch, rows: npt.NDArray[np.int64], cells: pa.Table) -> None:
        """Take ``rows`` of ``block``; ``cells`` holds their ``shuffle_key`` and what else belongs to each."""
        if not len(rows):
            return
        self._pieces.append(encode_rows(block, rows, self.values))
        self._cells.append(cells)
        self._entries += self._pieces[-1].nnz
        if self._entries >= RUN_ENTRIES:
            self.flush()

    def flush(self) -> None:
        """Write what is held as a run."""
        if not self._pieces:
            return
        cells = pa.concat_tables(self._cells).combine_chunks()
        order = np.argsort(cells["shuffle_key"].to_numpy())
        self._write(cells.take(order).combine_chunks(), in_order(self._pieces, order))
        self._pieces, self._cells, self._entries = [], [], 0
        self.runs += 1

    def _write(self, cells: pa.Table, rows: EncodedRows) -> None:
        run = self.folder / f"{self.runs:04d}"
        for name in dict.fromkeys(STREAMS.values()):
            lengths = getattr(rows, name)
            cells = cells.append_column(name, pa.array(lengths))
            cells = cells.append_column(f"{name}_before", pa.array(row_starts(lengths)[:-1]))
        with pa.ipc.new_file(run.with_suffix(".cells"), cells.schema) as writer:
            writer.write_table(cells)
        for stream in STREAMS:
            run.with_suffix(f".{stream}").write_bytes(getattr(rows, stream).data)


@dataclass(frozen=True)
class RunSlice:
    """The cells of a run that belong to one bucket, in the order of their shuffle keys.

    Attributes:
        cells: (cells,), the columns of the run.
        rows: the same cells.
    """

    cells: pa.Table
    rows: EncodedRows


def read_slice(run: Path, low: int, high: int, values: Values = "counts") -> RunSlice:
    """The cells with ``low`` <= shuffle key < ``high`` (up to 2^64) of the run at ``run``, its path without
    suffix.
    """
    with pa.memory_map(str(run.with_suffix(".cells"))) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
    keys = table["shuffle_key"].chunk(0).to_numpy()
    first = int(np.searchsorted(keys, np.uint64(low)))
    last = int(np.searchsorted(keys, np.uint64(high - 1), side="right"))
    # A copy: a view would keep the run's map open, and there may be more runs than a process may open files.
    cells = table.take(np.arange(first, last))
    lengths = {name: cells[name].combine_chunks().to_numpy() for name in dict.fromkeys(STREAMS.values())}
    streams = {}
    for stream, name in STREAMS.items():
        start = cells[f"{name}_before"][0].as_py() if len(cells) else 0
        count = int(lengths[name].sum(dtype=np.int64))
        kind = _kind(stream, values)
        # Read, not mapped: mapped pages would count as the worker's memory for as long as any of them is used.
        file = run.with_suffix(f".{stream}")
        streams[stream] = np.fromfile(file, kind, count=count, offset=start * kind.itemsize)
    return RunSlice(cells, EncodedRows(**streams, **lengths))


def merge(slices: list[RunSlice]) -> tuple[EncodedRows, pa.Table]:
    """The cells of ``slices`` in the order of their shuffle keys."""
    cells = pa.concat_tables([piece.cells for piece in slices]).combine_chunks()
    order = np.argsort(cells["shuffle_key"].to_numpy())
    return in_order([piece.rows for piece in slices], order), cells.take(order).combine_chunks()


def _kind(stream: str, values: Values) -> np.dtype[Any]:
    if stream.endswith("_escape"):
        return np.dtype(np.uint32)
    return np.dtype(np.float32 if stream == "measured" and values == "float32" else np.uint8)
