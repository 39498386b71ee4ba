"""How the rows of a source are cut into parts. A part decides how its cells are batched, whoever computes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cellfoundry_serving.outputs.zarr_group import chunk_rows

PART_CELLS = 1024
"""What a kill can cost: minutes on CPUs. 16 MB of entries at 2,000 genes a cell; with reading ahead three are held."""
PART_BYTES = 64 * 2**20
"""Of results, where a cell has many."""
LEAST_PART_CELLS = 64
"""Below, reading and bookkeeping would show beside the computing, even of gene embeddings."""


@dataclass(frozen=True)
class PartPlan:
    """Parts of ``part_cells`` rows each, the last one fewer.

    Attributes:
        n_cells: rows of the source.
        part_cells: rows of a part, whole chunks of a Zarr output.
        chunk_cells: rows of such a chunk.
    """

    n_cells: int
    part_cells: int
    chunk_cells: int

    @classmethod
    def of(cls, n_cells: int, row_shape: Sequence[int]) -> PartPlan:
        """For results of ``row_shape`` a cell."""
        fitting = PART_BYTES // (4 * math.prod(row_shape))
        cells = max(min(LEAST_PART_CELLS, PART_CELLS), min(fitting, PART_CELLS))
        chunk = min(chunk_rows(row_shape), cells)
        return cls(n_cells, cells - cells % chunk, chunk)

    @property
    def n_parts(self) -> int:
        """Number of parts."""
        return -(-self.n_cells // self.part_cells)

    def rows(self, part: int) -> tuple[int, int]:
        """Rows [start, stop) of a part."""
        start = part * self.part_cells
        return start, min(start + self.part_cells, self.n_cells)

    def cells(self, part: int) -> int:
        """Cells of a part."""
        start, stop = self.rows(part)
        return stop - start


def runs(parts: Iterable[int]) -> Iterator[range]:
    """Ranges of neighbours among ascending ``parts``: each is read in one go."""
    start = stop = -1
    for part in parts:
        if part != stop:
            if stop > start:
                yield range(start, stop)
            start = part
        stop = part + 1
    if stop > start:
        yield range(start, stop)
