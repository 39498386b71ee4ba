"""Cells of parts, in one process or as rows of a Ray Data pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.joined_cells import Cells
from cellfoundry_serving.parts.plan import PartPlan, runs


def read_parts(
    cells: Cells, plan: PartPlan, parts: Sequence[int]
) -> Iterator[tuple[int, CellBatch, npt.NDArray[np.float64] | None]]:
    """(part, its cells, their totals) of ascending ``parts``; neighbours are read in one go."""
    for run in runs(parts):
        start, stop = plan.rows(run[0])[0], plan.rows(run[-1])[1]
        for part, (batch, totals) in zip(run, cells.blocks(plan.part_cells, start, stop), strict=True):
            yield part, batch, totals
