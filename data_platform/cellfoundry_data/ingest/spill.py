"""First pass: a part of a source, aligned, filtered and keyed, into sorted runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.duplicate_keys import HASHES
from cellfoundry_data.ingest.duplicates import content_hashes, write_hashes
from cellfoundry_data.ingest.obs_columns import conform, quality_columns, source_obs, with_own_columns
from cellfoundry_data.ingest.plan import ReadOptions, SourcePlan, identity, open_cells
from cellfoundry_data.ingest.reports import PartReport
from cellfoundry_data.ingest.runs import RunWriter
from cellfoundry_data.ingest.work_folder import committed, fingerprint
from cellfoundry_data.qc import CellQuality, cell_quality
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.store.cell_keys import cell_keys, shuffle_keys

BLOCK_CELLS = 1024
"""Cells read at a time: 150 MB where each has 18,000 genes."""

OBS_CELLS = 64 * BLOCK_CELLS
"""Cells whose obs is held at a time; a source that is read in one part may have millions."""

CODE = "spill 2"
"""Part of fingerprints: changes with what a part's files hold."""


@dataclass(frozen=True)
class PartTask:
    """Rows [start, stop) of a source, and where to spill them.

    Attributes:
        source: the source.
        options: how it is read.
        schema: obs columns of the store.
        number: of the part in its source.
        start: first row.
        stop: row after the last.
        work: the folder of the whole ingest.
        parts: the folder of finished parts.
    """

    source: SourcePlan
    options: ReadOptions
    schema: pa.Schema
    number: int
    start: int
    stop: int
    work: Path
    parts: Path

    @cached_property
    def fingerprint(self) -> str:
        """Stands for all that decides the bytes of the source's parts."""
        source = self.source
        return fingerprint(
            CODE, self.options.key, source.index, source.name, source.path, source.identity, str(self.schema)
        )

    @property
    def target(self) -> Path:
        """The folder that holds the runs, hashes and report of the part when it is finished."""
        return self.parts / f"{self.fingerprint}-{self.number:06d}"

    def runs(self) -> list[Path]:
        """The runs of the finished part, their paths without suffix."""
        return [self.target / f"{run:04d}" for run in range(PartReport.read(self.target).runs)]


def spill_part(task: PartTask) -> Iterator[int]:
    """Spill one part; yields the cells read so far. ``task.target`` appears when all of it is written."""
    options = task.options
    source = _opened(task)
    source.counts_read = 0.0
    report = PartReport()
    with committed(task.target, task.work) as folder:
        hashes, hashed_rows = [], []
        runs = RunWriter(folder, options.values)
        obs, obs_start, obs_stop = None, task.start, task.start
        for block, _ in source.blocks(BLOCK_CELLS, task.start, task.stop):
            if obs is None or block.row_ids[0] >= obs_stop:
                obs_start, obs_stop = obs_stop, min(obs_stop + OBS_CELLS, task.stop)
                obs = _obs(task, source, obs_start, obs_stop)
            quality = cell_quality(block, options.vocabulary)
            keep, removed = options.limits.judge(quality)
            rows = np.flatnonzero(keep)
            runs.add(block, rows, _described(task, block, rows, quality, obs, obs_start))
            hashes.append(content_hashes(block)[rows])
            hashed_rows.append(block.row_ids[rows])
            report.add(_block_report(quality, keep, removed))
            yield report.cells_read
        runs.flush()
        if identity(task.source.path)[0] != task.source.identity:
            raise DataError(f"{task.source.path}: was changed while it was read; run the same command again.")
        write_hashes(folder / HASHES, np.concatenate(hashes), task.source.index, np.concatenate(hashed_rows))
        report.runs, report.counts_read = runs.runs, source.counts_read
        report.write(folder)


def _block_report(quality: CellQuality, keep: npt.NDArray[np.bool_], removed: dict[str, int]) -> PartReport:
    report = PartReport(
        cells_read=len(quality),
        removed=removed,
        cells=int(keep.sum()),
        nnz=int(quality.n_genes[keep].sum()),
        counts_kept=float(quality.total_counts.sum()),
    )
    report.histograms.add(quality, keep)
    return report


def _described(
    task: PartTask,
    block: CellBatch,
    rows: npt.NDArray[np.int64],
    quality: CellQuality,
    obs: pa.Table,
    obs_start: int,
) -> pa.Table:
    """Keys and obs of ``rows`` of the block."""
    source_rows = block.row_ids[rows]
    keys = cell_keys(task.source.index, source_rows)
    own = with_own_columns(obs.take(source_rows - obs_start), quality_columns(quality.select(rows)))
    return pa.table(
        {
            "shuffle_key": shuffle_keys(keys, task.options.seed),
            "cell_key": keys,
            "obs": own.to_struct_array(),
        }
    )


def _obs(task: PartTask, source: SourceCells, start: int, stop: int) -> pa.Table:
    """obs of rows [start, stop) of the source, in the columns of the store."""
    rows = source.obs_rows(start, stop)
    return conform(
        source_obs(task.source.name, rows, first_row=start, schema=task.source.schema), task.schema
    )


_last_opened: dict[tuple[str, str], SourceCells] = {}


def _opened(task: PartTask) -> SourceCells:
    """The source; a worker reads the parts of a source one after the other and opens it once."""
    key = (task.source.path, task.fingerprint)
    if key not in _last_opened:
        _last_opened.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the driver opened the source before and gave its warnings
            _last_opened[key] = open_cells(task.source.path, task.options, task.source.alignment)
    return _last_opened[key]
