"""Scores of one method at one depth, over thinnings and over cells."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cellfoundry_tasks.enhance.gene_errors import SCORES, GeneErrors
from cellfoundry_tasks.intervals import Interval, interval


@dataclass(frozen=True)
class Score:
    """A score of one method at one depth.

    Attributes:
        mean: over judged cells, of each cell's mean over thinnings; of a score that cells do not have, over thinnings.
        over_seeds: of the cells' mean in each thinning: what the chance of thinning does.
        over_cells: of the cells' means: what the choice of cells does; None for a score that cells do not have.
    """

    mean: float
    over_seeds: Interval
    over_cells: Interval | None


@dataclass
class Tally:
    """Errors of one method at one depth, round by round.

    Attributes:
        cells: of the data set.
        rows: judged rows of the data set, of each round.
        errors: their errors.
    """

    cells: int
    rows: list[npt.NDArray[np.int64]] = field(default_factory=list)
    errors: list[GeneErrors] = field(default_factory=list)

    def add(self, rows: npt.NDArray[np.int64], errors: GeneErrors) -> None:
        """Note a round."""
        self.rows.append(rows)
        self.errors.append(errors)

    def cell_means(self, key: str) -> npt.NDArray[np.float64]:
        """Mean over thinnings of every cell of the data set; NaN for cells that were not judged, or have no score."""
        by_round = np.full((len(self.errors), self.cells), np.nan)
        for number, (rows, errors) in enumerate(zip(self.rows, self.errors, strict=True)):
            by_round[number, rows] = errors.of_cells[key]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            return np.asarray(np.nanmean(by_round, 0))

    def scores(self) -> dict[str, Score]:
        """By key of ``SCORES``, without those that are not defined, as is the correlation of a constant."""
        found = {}
        for key in SCORES:
            if key == "pcc_gene":
                means = [errors.pcc_gene for errors in self.errors]
                over_cells = None
            else:
                of_rounds = [errors.of_cells[key] for errors in self.errors]
                means = [float(np.nanmean(of_cells)) for of_cells in of_rounds if np.isfinite(of_cells).any()]
                over_cells = _finite_interval(self.cell_means(key))
            if len(means) == len(self.errors) and np.isfinite(means).all():
                over_seeds = interval(means)
                found[key] = Score((over_cells or over_seeds).mean, over_seeds, over_cells)
        return found


def difference(one: Tally, other: Tally, key: str) -> Interval | None:
    """Of two methods' scores, ``one`` less ``other``, cell by cell over the cells that both have; None without any."""
    return _finite_interval(one.cell_means(key) - other.cell_means(key))


def _finite_interval(scores: npt.NDArray[np.float64]) -> Interval | None:
    finite = scores[np.isfinite(scores)]
    return interval(finite.tolist()) if len(finite) else None
