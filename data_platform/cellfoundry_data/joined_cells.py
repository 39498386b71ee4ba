"""The cells of several sources one after another, as one source: a folder of files, or files that a user lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from .batch import CellBatch
from .ingest.obs_columns import common_schema, conform, dictionary_encoded, source_obs, source_schema
from .store.format import OBS_CELL_NAME
from .store.reader import obs_as_frame

Block = tuple[CellBatch, npt.NDArray[np.float64] | None]


class Cells(Protocol):
    """What ``SourceCells``, ``StoreCells`` and ``JoinedCells`` have in common."""

    n_cells: int
    row_access: bool

    @property
    def obs(self) -> pd.DataFrame:
        """One row a cell, indexed by cell name."""

    def blocks(self, block_cells: int, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Cells and totals of rows [start, stop), ``block_cells`` at a time, in order."""


class JoinedCells:
    """Sources over one vocabulary, in the given order; blocks go across their borders.

    Args:
        names: what the obs column ``source`` calls each.
        cells: the sources.

    Attributes:
        n_cells: cells of all.
        row_access: whether ``blocks`` may start at any row without a scan in each of them.
    """

    def __init__(self, names: Sequence[str], cells: Sequence[Cells]) -> None:
        self._names, self._cells = list(names), list(cells)
        self._edges = np.concatenate([[0], np.cumsum([each.n_cells for each in cells])]).tolist()
        self.n_cells = int(self._edges[-1])
        self.row_access = all(each.row_access for each in cells)

    @cached_property
    def obs(self) -> pd.DataFrame:
        """One row a cell, indexed by cell name: ``source``, ``source_row``, then the columns of all sources, empty
        where a source lacks one.
        """
        frames = [each.obs for each in self._cells]
        schema = common_schema(source_schema(frame) for frame in frames)
        tables = [
            dictionary_encoded(conform(source_obs(name, frame, schema=source_schema(frame)), schema))
            for name, frame in zip(self._names, frames, strict=True)
        ]
        frame = obs_as_frame(pa.concat_tables(tables).unify_dictionaries()).set_index(OBS_CELL_NAME)
        return frame.set_axis(frame.index.astype(str))

    def blocks(self, block_cells: int, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Yield (cells, totals) of ``block_cells`` cells, the last one fewer, of rows [start, stop), in order.

        ``row_ids`` count through all sources.
        """
        waiting: list[Block] = []
        for piece in self._pieces(block_cells, start, self.n_cells if stop is None else stop):
            waiting.append(piece)
            if sum(len(cells) for cells, _ in waiting) >= block_cells:
                cells, totals = _concatenated(waiting)
                yield _rows(cells, totals, 0, block_cells)
                waiting = [_rows(cells, totals, block_cells, len(cells))]
        if sum(len(cells) for cells, _ in waiting):
            yield _concatenated(waiting)

    def _pieces(self, block_cells: int, start: int, stop: int) -> Iterator[Block]:
        for first, each in zip(self._edges, self._cells, strict=False):
            low, high = max(start - first, 0), min(stop - first, each.n_cells)
            if low >= high:
                continue
            for cells, totals in each.blocks(block_cells, low, high):
                yield replace(cells, row_ids=cells.row_ids + first), totals


def _rows(cells: CellBatch, totals: npt.NDArray[np.float64] | None, low: int, high: int) -> Block:
    """Views of the cells at [low, high)."""
    first, last = cells.indptr[low], cells.indptr[high]
    part = CellBatch(
        cells.indptr[low : high + 1] - first,
        cells.gene_ids[first:last],
        cells.counts[first:last],
        cells.row_ids[low:high],
    )
    return part, None if totals is None else totals[low:high]


def _concatenated(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    lengths = np.concatenate([np.diff(cells.indptr) for cells, _ in blocks])
    joined = CellBatch(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([cells.gene_ids for cells, _ in blocks]),
        np.concatenate([cells.counts for cells, _ in blocks]),
        np.concatenate([cells.row_ids for cells, _ in blocks]),
    )
    totals = [totals for _, totals in blocks if totals is not None]
    return joined, np.concatenate(totals) if totals else None
