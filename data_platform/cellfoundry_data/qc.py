"""Quality filters on aligned cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .batch import CellBatch


@dataclass(frozen=True)
class FilterCounts:
    """What the filters did; counts of several batches add up.

    Attributes:
        cells: cells seen.
        removed_min_genes: cells with fewer genes than asked for.
    """

    cells: int = 0
    removed_min_genes: int = 0

    @property
    def kept(self) -> int:
        """Cells that passed."""
        return self.cells - self.removed_min_genes

    def __add__(self, other: FilterCounts) -> FilterCounts:
        return FilterCounts(self.cells + other.cells, self.removed_min_genes + other.removed_min_genes)


def genes_per_cell(batch: CellBatch) -> npt.NDArray[np.int64]:
    """Number of genes with counts, int64, (cells,)."""
    return np.diff(batch.indptr)


def filter_cells(batch: CellBatch, *, min_genes: int) -> tuple[npt.NDArray[np.bool_], FilterCounts]:
    """Which cells have at least ``min_genes`` vocabulary genes, bool, (cells,), and the counts of that."""
    keep = genes_per_cell(batch) >= min_genes
    return keep, FilterCounts(cells=len(batch), removed_min_genes=int((~keep).sum()))
