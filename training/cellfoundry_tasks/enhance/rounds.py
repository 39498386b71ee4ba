"""One thinning of all cells to one depth, the same for everyone who is to enhance it.

Legend: C cells left after thinning, J judged cells among them, G genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import anndata as ad
import numpy as np
import numpy.typing as npt

from cellfoundry_tasks.baselines import log_normalized
from cellfoundry_tasks.enhance.thinning import thinned, with_counts


@dataclass(frozen=True)
class Round:
    """Cells thinned once to one depth.

    Attributes:
        depth: share of the molecules that was kept.
        seed: of the thinning.
        cells: thinned cells in which anything is left, (C, G).
        rows: their rows in the data set, (C,).
        judged: places among them of the judged cells, (J,).
        true_JG: log1p of counts per 10,000 at full depth, float32.
    """

    depth: float
    seed: int
    cells: ad.AnnData
    rows: npt.NDArray[np.int64]
    judged: npt.NDArray[np.int64]
    true_JG: npt.NDArray[np.float32]

    @property
    def fold(self) -> float:
        """By how much the depth is to grow."""
        return 1 / self.depth

    @property
    def full_total_J(self) -> npt.NDArray[np.float64]:
        """Molecules of the judged cells at full depth, as who knows the thinned ones and the fold has them."""
        return np.asarray(self.cells.X[self.judged].sum(1), dtype=np.float64).ravel() * self.fold


def thinned_round(full: ad.AnnData, judged_rows: npt.NDArray[np.int64], depth: float, seed: int) -> Round:
    """Thin all cells of ``full``; judged are those of ``judged_rows`` in which anything is left."""
    thin = thinned(full, depth, seed)
    rows = np.flatnonzero(with_counts(thin))
    judged = np.flatnonzero(np.isin(rows, judged_rows))
    true_JG = log_normalized(full[rows[judged]]).toarray().astype(np.float32)
    return Round(depth, seed, thin[rows].copy(), rows, judged, true_JG)
