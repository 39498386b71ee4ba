"""Ragged batch of cells, the one type that travels between data, model, training and serving (numpy only)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class CellBatch:
    """Cells in CSR form over a vocabulary's gene axis.

    Within a cell ``gene_ids`` ascend strictly and ``counts`` are positive, so ``len(counts)`` is the batch's nnz.

    Attributes:
        indptr: int64, (cells + 1,); cell ``i`` owns entries ``indptr[i]:indptr[i + 1]``.
        gene_ids: int32, (nnz,); positions in the vocabulary.
        counts: float32, (nnz,); raw counts, or values as given where a matrix is already normalised.
        row_ids: int64, (cells,); a cell's row in its source or store.
        obs: chosen obs columns, each (cells,).
    """

    indptr: npt.NDArray[np.int64]
    gene_ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.float32]
    row_ids: npt.NDArray[np.int64]
    obs: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        """Stored entries over all cells."""
        return len(self.gene_ids)

    def totals(self) -> npt.NDArray[np.float64]:
        """Sum of each cell's counts, float64, (cells,); 0 for a cell without entries."""
        sums = np.concatenate([[0.0], np.cumsum(self.counts, dtype=np.float64)])
        return sums[self.indptr[1:]] - sums[self.indptr[:-1]]

    def between(self, start: int, stop: int) -> CellBatch:
        """The cells from ``start`` up to ``stop``, without copying their entries."""
        entries = slice(self.indptr[start], self.indptr[stop])
        return CellBatch(
            self.indptr[start : stop + 1] - self.indptr[start],
            self.gene_ids[entries],
            self.counts[entries],
            self.row_ids[start:stop],
            {name: column[start:stop] for name, column in self.obs.items()},
        )

    def select(self, rows: npt.NDArray[np.int64]) -> CellBatch:
        """The cells at ``rows`` (positions in this batch), in that order."""
        lengths = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(self.indptr[:-1][rows] - indptr[:-1], lengths) + np.arange(indptr[-1])
        return CellBatch(
            indptr,
            self.gene_ids[entries],
            self.counts[entries],
            self.row_ids[rows],
            {name: column[rows] for name, column in self.obs.items()},
        )
