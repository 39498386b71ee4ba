"""Quality of cells: what is measured, which limits remove a cell, and histograms for the store's report."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from .batch import CellBatch
from .errors import DataError
from .vocabulary import Vocabulary

BINS_PER_DECADE = 40
DECADES = 10
LOG_EDGES = np.concatenate(
    [[0.0], 10.0 ** (np.arange(BINS_PER_DECADE * DECADES + 1) / BINS_PER_DECADE), [np.inf]]
)
"""Bins of numbers from 1 to 10^10, 6 % wide, after one bin for less than 1."""
SHARE_EDGES = np.append(np.arange(100) / 100, np.inf)
EDGES = {"total_counts": LOG_EDGES, "n_genes": LOG_EDGES, "mito_share": SHARE_EDGES}
FILTERS = ("without_counts", "min_genes", "min_total", "max_total", "max_mito_share")


@dataclass(frozen=True)
class CellQuality:
    """Three numbers a cell, over the vocabulary's genes.

    Attributes:
        n_genes: int32, (cells,); genes with counts.
        total_counts: float64, (cells,); sum of the counts.
        mito_share: float32, (cells,); counts of mitochondrial genes over all, 0 for a cell without counts.
    """

    n_genes: npt.NDArray[np.int32]
    total_counts: npt.NDArray[np.float64]
    mito_share: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.n_genes)

    def select(self, cells: npt.NDArray[Any]) -> CellQuality:
        """The chosen cells, by position or by mask."""
        return CellQuality(self.n_genes[cells], self.total_counts[cells], self.mito_share[cells])


class QcLimits(BaseModel):
    """Which cells stay; a limit itself is still good.

    Attributes:
        min_genes: cells with fewer vocabulary genes with counts are removed.
        max_mito_share: cells with a larger share of mitochondrial counts are removed, 0 to 1; None keeps all.
        min_total: cells with fewer counts are removed.
        max_total: cells with more counts are removed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_genes: int = Field(default=200, ge=0)
    max_mito_share: float | None = Field(default=None, ge=0, le=1)
    min_total: float | None = Field(default=None, ge=0)
    max_total: float | None = Field(default=None, ge=0)

    def check(self, vocab: Vocabulary) -> None:
        """Raise DataError where no cell could meet the limits, or one cannot be judged with this vocabulary."""
        if self.min_total is not None and self.max_total is not None and self.min_total > self.max_total:
            raise DataError(
                f"min_total {self.min_total:g} is above max_total {self.max_total:g}: no cell would stay; swap them."
            )
        if self.min_genes > len(vocab):
            raise DataError(
                f"min_genes {self.min_genes:,} is more than the {len(vocab):,} genes of the vocabulary: no cell "
                "would stay; lower it."
            )
        if self.max_mito_share is not None and not len(mitochondrial_genes(vocab)):
            raise DataError(
                "max_mito_share cannot be judged: no gene of the vocabulary is named MT-...; leave it out or use a "
                "vocabulary of human symbols."
            )

    def judge(self, quality: CellQuality) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
        """Which cells stay, bool, (cells,), and how many each of ``FILTERS`` removed.

        Cells without counts never stay. A removed cell is counted once, under the first filter that it fails.
        """
        fails = {"without_counts": quality.n_genes == 0, "min_genes": quality.n_genes < self.min_genes}
        if self.min_total is not None:
            fails["min_total"] = quality.total_counts < self.min_total
        if self.max_total is not None:
            fails["max_total"] = quality.total_counts > self.max_total
        if self.max_mito_share is not None:
            # The share is float32: a limit of 0.2 must keep a share of exactly 1/5.
            fails["max_mito_share"] = quality.mito_share > np.float32(self.max_mito_share)
        keep = np.ones(len(quality), bool)
        removed = dict.fromkeys(FILTERS, 0)
        for name, failed in fails.items():
            removed[name] = int((keep & failed).sum())
            keep &= ~failed
        return keep, removed


def mitochondrial_genes(vocab: Vocabulary) -> npt.NDArray[np.int32]:
    """Positions of the genes named MT-... (any case), int32, ascending; genes of the mitochondrial genome."""
    return _mitochondrial(vocab)[0]


def cell_quality(cells: CellBatch, vocab: Vocabulary) -> CellQuality:
    """Measure each cell. Totals add float64 in one fixed order, so that they are the same on every machine."""
    total, mito = _sums(cells.indptr, cells.gene_ids, cells.counts, *_mitochondrial(vocab))
    share = np.divide(mito, total, out=np.zeros_like(mito), where=total > 0)
    return CellQuality(np.diff(cells.indptr).astype(np.int32), total, share.astype(np.float32))


@dataclass
class QcHistograms:
    """How total counts, genes and mitochondrial share are spread over the cells of a source; adds up.

    Attributes:
        total_counts: int64, (2, bins of ``LOG_EDGES``); cells read, cells kept.
        n_genes: int64, (2, bins of ``LOG_EDGES``).
        mito_share: int64, (2, bins of ``SHARE_EDGES``).
    """

    total_counts: npt.NDArray[np.int64] = field(default_factory=lambda: _no_cells("total_counts"))
    n_genes: npt.NDArray[np.int64] = field(default_factory=lambda: _no_cells("n_genes"))
    mito_share: npt.NDArray[np.int64] = field(default_factory=lambda: _no_cells("mito_share"))

    def add(self, quality: CellQuality, keep: npt.NDArray[np.bool_]) -> None:
        """Count the cells of a block; ``keep`` says which of them stay."""
        for name, edges in EDGES.items():
            counts = getattr(self, name)
            bins = np.searchsorted(edges, getattr(quality, name), side="right") - 1
            for row, chosen in enumerate((bins, bins[keep])):
                counts[row] += np.bincount(chosen, minlength=counts.shape[1])

    def merge(self, other: QcHistograms) -> None:
        """Add the cells of another."""
        for name in EDGES:
            getattr(self, name)[...] += getattr(other, name)

    def to_dict(self) -> dict[str, list[list[int]]]:
        """Quantity -> [bin, cells read, cells kept] of every bin that holds a cell; JSON values."""
        filled = {name: np.flatnonzero(getattr(self, name)[0]) for name in EDGES}
        return {
            name: np.column_stack([bins, *getattr(self, name)[:, bins]]).tolist()
            for name, bins in filled.items()
        }

    @staticmethod
    def from_dict(values: dict[str, list[list[int]]]) -> QcHistograms:
        """Undo ``to_dict``."""
        histograms = QcHistograms()
        for name in EDGES:
            bins, *counts = np.array(values[name], np.int64).reshape(-1, 3).T
            getattr(histograms, name)[:, bins] = counts
        return histograms

    def to_table(self, source: str) -> pa.Table:
        """Rows of a store's ``qc.parquet``: source, quantity, low, high, cells_read, cells_kept; empty bins left out.

        A bin holds values from ``low`` (inclusive) to ``high`` (exclusive, infinite for the last).
        """
        tables = []
        for name, edges in EDGES.items():
            counts = getattr(self, name)
            bins = np.flatnonzero(counts[0])
            columns = {
                "source": pa.array([source] * len(bins), pa.string()),
                "quantity": pa.array([name] * len(bins), pa.string()),
                "low": edges[:-1][bins],
                "high": edges[1:][bins],
                "cells_read": counts[0, bins],
                "cells_kept": counts[1, bins],
            }
            tables.append(pa.table(columns))
        return pa.concat_tables(tables)

    @staticmethod
    def from_table(table: pa.Table) -> dict[str, QcHistograms]:
        """The histograms of each source in a ``qc.parquet``; raises DataError for bins of another version."""
        of_source: dict[str, QcHistograms] = {}
        if not set(_COLUMNS) <= set(table.column_names):
            raise DataError(
                f"qc.parquet has not the columns {', '.join(_COLUMNS)}; ingest the sources again."
            )
        bin_of = {
            name: {low: bin for bin, low in enumerate(edges[:-1].tolist())} for name, edges in EDGES.items()
        }
        columns = table.select(_COLUMNS).to_pydict()
        for source, name, low, read, kept in zip(*columns.values(), strict=True):
            if low not in bin_of.get(name, {}):
                raise DataError(
                    f"qc.parquet has a bin of {name} at {low}, unknown to this version; ingest the sources again."
                )
            getattr(of_source.setdefault(source, QcHistograms()), name)[:, bin_of[name][low]] += (read, kept)
        return of_source


_COLUMNS = ["source", "quantity", "low", "cells_read", "cells_kept"]


def _no_cells(name: str) -> npt.NDArray[np.int64]:
    return np.zeros((2, len(EDGES[name]) - 1), np.int64)


@lru_cache(maxsize=8)
def _mitochondrial(vocab: Vocabulary) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Positions, and the same as a mask, (genes,)."""
    mask = np.array([gene.upper().startswith("MT-") for gene in vocab.genes], bool)
    return np.flatnonzero(mask).astype(np.int32), mask


@numba.njit(nogil=True, cache=True)
def _sums(indptr, gene_ids, counts, mito_genes, is_mito):  # type: ignore[no-untyped-def]
    """Sum of all counts and of the mitochondrial ones of each cell.

    Four running sums let additions overlap. Genes ascend, and in a sorted vocabulary the mitochondrial ones lie side
    by side: a search for the first of them spares a look at each entry.
    """
    cells = len(indptr) - 1
    total, mito = np.zeros(cells, np.float64), np.zeros(cells, np.float64)
    for cell in range(cells):
        start, stop = indptr[cell], indptr[cell + 1]
        a = b = c = d = 0.0
        four = stop - (stop - start) % 4
        for entry in range(start, four, 4):
            a += counts[entry]
            b += counts[entry + 1]
            c += counts[entry + 2]
            d += counts[entry + 3]
        for entry in range(four, stop):
            a += counts[entry]
        total[cell] = (a + b) + (c + d)
        if len(mito_genes):
            entry = start + np.searchsorted(gene_ids[start:stop], mito_genes[0])
            while entry < stop and gene_ids[entry] <= mito_genes[-1]:
                if is_mito[gene_ids[entry]]:
                    mito[cell] += counts[entry]
                entry += 1
    return total, mito
