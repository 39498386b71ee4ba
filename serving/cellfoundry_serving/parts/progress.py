"""How far an embedding is, in cells, and what its parts say of themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cellfoundry_serving.encode import Progress


class PartProgress:
    """Tells ("embed", cells done, cells); what an embedding before has done counts from the start, not for the rate.

    Attributes:
        n_cells: cells of the source.
        cells_before: cells that were done before this run.
        empty: cells without counts so far.
        engines: what has computed the parts.
        averaged: cells that are in the means; None where every cell is written.
    """

    def __init__(self, n_cells: int, parts: Iterable[dict[str, Any]], progress: Progress | None) -> None:
        self.n_cells = n_cells
        self._progress = progress
        self.empty = 0
        self.engines: list[str] = []
        self.averaged: int | None = None
        self._cells = self._told = 0
        for facts in parts:
            self._take(facts)
        self.cells_before = self._cells
        if progress:
            for done in (0, self._cells, self._cells):  # said twice: the rate counts from here
                progress("embed", done, n_cells)
        self._told = self._cells

    def within(self, cells: int) -> None:
        """So many cells of the part at hand are through."""
        self._tell(self._cells + cells)

    def done(self, facts: dict[str, Any]) -> None:
        """A part is committed."""
        self._take(facts)
        self._tell(self._cells)

    def _take(self, facts: dict[str, Any]) -> None:
        self._cells += facts["cells"]
        self.empty += facts["empty"]
        if facts["engine"] not in self.engines:
            self.engines.append(facts["engine"])

    def _tell(self, cells: int) -> None:
        if self._progress and cells > self._told:
            self._told = cells
            self._progress("embed", cells, self.n_cells)
