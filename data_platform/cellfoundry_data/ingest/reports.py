"""What became of the cells, part by part and source by source, and how far the reading is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellfoundry_data.ingest.jobs import Step
from cellfoundry_data.ingest.plan import Progress, SourcePlan, public_path
from cellfoundry_data.ingest.work_folder import write_json
from cellfoundry_data.qc import FILTERS, QcHistograms

if TYPE_CHECKING:
    from cellfoundry_data.ingest.spill import PartTask

REPORT = "report.json"


@dataclass
class PartReport:
    """What became of the cells of a part, or of a whole source.

    Attributes:
        cells_read: all of them.
        removed: cells that each filter removed, see ``QcLimits.judge``.
        cells: cells kept.
        nnz: their entries.
        counts_read: all counts.
        counts_kept: those in the vocabulary's genes, before cells were removed.
        runs: files of cells.
        histograms: see ``QcHistograms``.
    """

    cells_read: int = 0
    removed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FILTERS, 0))
    cells: int = 0
    nnz: int = 0
    counts_read: float = 0.0
    counts_kept: float = 0.0
    runs: int = 0
    histograms: QcHistograms = field(default_factory=QcHistograms)

    def add(self, other: PartReport) -> None:
        """Add the cells of another part."""
        for name in ("cells_read", "cells", "nnz", "counts_read", "counts_kept", "runs"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in FILTERS:
            self.removed[name] += other.removed[name]
        self.histograms.merge(other.histograms)

    @classmethod
    def sum(cls, reports: Iterable[PartReport]) -> PartReport:
        """All of them together."""
        total = cls()
        for report in reports:
            total.add(report)
        return total

    def write(self, folder: Path) -> None:
        """Keep the report beside the part's runs."""
        write_json(folder / REPORT, vars(self) | {"histograms": self.histograms.to_dict()})

    @classmethod
    def read(cls, folder: Path) -> PartReport:
        """The report of the finished part in ``folder``."""
        values = json.loads((folder / REPORT).read_bytes())
        return cls(**values | {"histograms": QcHistograms.from_dict(values["histograms"])})


def source_entry(plan: SourcePlan, report: PartReport, duplicates: int) -> dict[str, Any]:
    """What the manifest says of a source.

    ``genes`` are vocabulary genes that it measures; ``share_of_counts_kept`` is of the counts in those over all,
    before cells were removed; ``duplicates`` are kept cells that equal an earlier one.
    """
    alignment = plan.alignment
    return {
        "name": plan.name,
        "path": public_path(plan.path),
        "format": plan.format,
        "matrix": plan.matrix,
        "cells_read": report.cells_read,
        "removed": report.removed,
        "cells": report.cells,
        "duplicates": duplicates,
        "nnz": report.nnz,
        "genes": alignment.genes,
        "matched_columns": alignment.matched,
        "matched_by_alias": alignment.matched_by_alias,
        "ambiguous_columns": alignment.ambiguous,
        "duplicate_columns": alignment.duplicates,
        "dropped_columns": alignment.dropped,
        "dropped_names": list(alignment.dropped_names),
        "share_of_counts_kept": report.counts_kept / report.counts_read if report.counts_read else 0.0,
    }


class ReadProgress:
    """Tells cells, bytes and sources read; what an ingest before has read counts from the start."""

    def __init__(
        self, parts: Sequence[PartTask], missing: Sequence[PartTask], progress: Progress | None
    ) -> None:
        self._progress = progress
        sources = {part.source.index: part.source for part in parts}
        self._cells = sum(source.n_cells for source in sources.values())
        self._bytes = sum(source.size for source in sources.values())
        self._sources = len(sources)
        self._done = {part.target: part.stop - part.start for part in parts} | {
            part.target: 0 for part in missing
        }
        self._per_cell = {part.target: part.source.size / part.source.n_cells for part in parts}
        self._parts_left = Counter(part.source.index for part in missing)

    def __call__(self, part: PartTask, step: Step) -> None:
        """Take a task's message."""
        self._done[part.target] = step.done
        self._parts_left[part.source.index] -= step.finished
        if self._progress:
            n_bytes = sum(cells * self._per_cell[part] for part, cells in self._done.items())
            self._progress("read bytes", round(n_bytes), self._bytes)
            self._progress("read cells", sum(self._done.values()), self._cells)
            if step.finished:
                left = sum(parts > 0 for parts in self._parts_left.values())
                self._progress("read sources", self._sources - left, self._sources)
