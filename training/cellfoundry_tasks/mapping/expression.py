"""Principal components of the model's expression at the depth asked for.

Legend: C all cells, D drawn cells, G genes of the model, K components.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cellfoundry_model.embedder import Embedder
from cellfoundry_tasks.mapping.config import MapConfig
from cellfoundry_tasks.mapping.integration import Floats, principal_axes
from cellfoundry_tasks.mapping.joint import Joint
from cellfoundry_tasks.mapping.methods import COMPONENTS
from cellfoundry_tasks.representation import Progress, represent


class Expression:
    """Axes of the drawn cells, whose expression of all genes (77 kB a cell) fits in memory; other cells are brought to
    them block by block.

    Args:
        joint: all cells.
        rows: of the drawn cells, ascending.
        embedder: the model.
        config: target and seed.
        progress: called with (label, done, total).

    Attributes:
        drawn_DK: components of the drawn cells, float32.
    """

    def __init__(
        self,
        joint: Joint,
        rows: npt.NDArray[np.int64],
        embedder: Embedder,
        config: MapConfig,
        progress: Progress | None,
    ) -> None:
        self._joint, self._rows, self._embedder = joint, rows, embedder
        self._target, self._progress = config.target, progress
        expression_DG = self._expression(rows, lambda expression_CG: expression_CG)
        self._axes = principal_axes(expression_DG, COMPONENTS, config.seed)
        self.drawn_DK = self._components(expression_DG)

    def all_cells(self) -> Floats:
        """Components of all cells, float32 (C, K); those of the drawn ones are not computed again."""
        found_CK = np.empty((self._joint.cells.n_obs, self.drawn_DK.shape[1]), dtype=np.float32)
        found_CK[self._rows] = self.drawn_DK
        others = np.setdiff1d(np.arange(len(found_CK)), self._rows)
        if len(others):
            found_CK[others] = self._expression(others, self._components)
        return found_CK

    def _components(self, expression_CG: Floats) -> Floats:
        found_CK: Floats = self._axes.transform(expression_CG).astype(np.float32)
        return found_CK

    def _expression(self, rows: npt.NDArray[np.int64], keep: Callable[[Floats], Floats]) -> Floats:
        return represent(
            self._joint.cells[rows].copy(),
            self._embedder,
            output="expression",
            target=self._target,
            keep=keep,
            label="expression",
            progress=self._progress,
        )
