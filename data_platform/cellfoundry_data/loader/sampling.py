"""Weighted sampling: every place of an epoch draws a category, and the category hands out its next cell.

Categories are drawn independently, or in quotas a batch (stratified). Within a category cells come without
replacement, in passes: its cells in store order are cut into blocks of 64, a pass takes the blocks in random
order from a random cell on. The store is shuffled, so neighbours are a random sample, and a chunk is
decompressed once for several of them: about once for 61 s draws of a category with the share s, and at most once
a draw, so a rare category costs many times what plain reading does (balanced cell types of the benchmark:
64 against 3.8 us a cell). How many cells each category gave before a window is part of the loader's state, so
resuming reads nothing again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cellfoundry_data.errors import DataError
from cellfoundry_data.loader.obs import ObsColumn
from cellfoundry_data.loader.order import Drawn
from cellfoundry_data.loader.permutation import (
    BLOCKS,
    CELLS,
    DRAWS,
    QUOTAS,
    STARTS,
    permutation,
    salt,
    uniforms,
)
from cellfoundry_data.loader.selection import Selection
from cellfoundry_data.store import Store

Int64 = npt.NDArray[np.int64]

BLOCK_CELLS = 64
MAX_CATEGORIES = 4096
SPAN_CELLS = 16_384
"""Cells between two counts of every category: half a byte a cell for 1,000 categories."""


class Categories:
    """The cells of each category, found by their number in it; memory is the codes and one count a span.

    Args:
        codes: unsigned integers, (cells,); category of each cell, ``n_categories`` for cells that take no part.
        n_categories: categories.

    Attributes:
        sizes: int64, (n_categories,); cells of each.
    """

    def __init__(self, codes: npt.NDArray[np.unsignedinteger], n_categories: int) -> None:
        self._codes = codes
        spans = range(0, len(codes), SPAN_CELLS)
        counts = [
            np.bincount(codes[first : first + SPAN_CELLS], minlength=n_categories)[:n_categories]
            for first in spans
        ]
        self._before = np.zeros((len(spans) + 1, n_categories), np.int64)
        np.cumsum(counts, axis=0, out=self._before[1:])
        self.sizes = self._before[-1]

    def rows(self, category: int, numbers: Int64) -> Int64:
        """Rows of the cells with these numbers in their category (counted in store order); int64."""
        before = self._before[:, category]
        rows = np.empty(len(numbers), np.int64)
        span_of = np.searchsorted(before, numbers, side="right") - 1
        by_span = np.argsort(span_of, kind="stable")
        spans, starts = np.unique(span_of[by_span], return_index=True)
        for span, places in zip(spans, np.split(by_span, starts[1:]), strict=True):
            first = span * SPAN_CELLS
            members = np.flatnonzero(self._codes[first : first + SPAN_CELLS] == category)
            rows[places] = members[numbers[places] - before[span]] + first
        return rows


class WeightedDraws:
    """As many draws an epoch as there are cells in the categories with a weight.

    Args:
        categories: the cells.
        weights: (n_categories,), not negative; the draws' shares are in proportion.
        window_cells: draws of a window, about; whole batches where there is a batch size.
        batch_cells: cells of a batch, or None where batches have no fixed size.
        stratified: each batch holds every category's expected number of cells, rounded up or down.
        seed: of the draws.
    """

    def __init__(
        self,
        categories: Categories,
        weights: npt.NDArray[np.float64],
        *,
        window_cells: int,
        batch_cells: int | None,
        stratified: bool,
        seed: int,
    ) -> None:
        self.categories, self.stratified, self.seed = categories, stratified, seed
        self.batch_cells = batch_cells or 1
        self.window_cells = max(1, window_cells // self.batch_cells) * self.batch_cells
        self.n_cells = int(categories.sizes[weights > 0].sum())
        self.bounds = np.cumsum(weights) / weights.sum()
        # A draw close to 1 must not fall behind the last category with a weight.
        self.bounds[np.flatnonzero(weights)[-1] :] = 1.0

    def epoch(self, number: int) -> DrawnEpoch:
        """The draws of the epoch ``number``."""
        return DrawnEpoch(self, number)


class DrawnEpoch:
    """One epoch of ``WeightedDraws``; see ``EpochOrder``."""

    def __init__(self, order: WeightedDraws, number: int) -> None:
        self._order, self._number = order, number
        self.windows = -(-order.n_cells // order.window_cells)
        self._passes: dict[int, tuple[int, Int64]] = {}

    def rows(self, window: int, drawn: Drawn) -> tuple[Int64, Drawn]:
        """See ``EpochOrder``."""
        first = window * self._order.window_cells
        last = min(first + self._order.window_cells, self._order.n_cells)
        categories = self._categories(first, last)
        sizes = self._order.categories.sizes
        counts = np.bincount(categories, minlength=len(sizes))
        given = np.array(drawn or (0,) * len(sizes), np.int64)
        places = np.split(np.argsort(categories, kind="stable"), np.cumsum(counts)[:-1])
        rows = np.empty(last - first, np.int64)
        for category in np.flatnonzero(counts):
            start = int(given[category])
            cells = self._cells(int(category), np.arange(start, start + counts[category]))
            mixed = permutation(len(cells), self._salt(CELLS, window, int(category)))
            rows[places[category]] = self._order.categories.rows(int(category), cells[mixed])
        return rows, tuple((given + counts).tolist())

    def _categories(self, first: int, last: int) -> Int64:
        """Category of the draws ``first`` to ``last - 1``; ``first`` begins a batch."""
        order = self._order
        if not order.stratified:
            points = uniforms(first, last, self._salt(DRAWS))
            return np.searchsorted(order.bounds, points, side="right")
        # Systematic sampling (Madow 1949): evenly spaced points from one random start a batch.
        size = order.batch_cells
        batches = np.arange(first // size, -(-last // size))
        starts = uniforms(int(batches[0]), int(batches[-1]) + 1, self._salt(DRAWS))
        points = (np.arange(size) + starts[:, None]) / size
        quotas = np.searchsorted(order.bounds, points.clip(max=1 - 2.0**-53), side="right")
        mixing = uniforms(int(batches[0]) * size, (int(batches[-1]) + 1) * size, self._salt(QUOTAS))
        mixed = np.take_along_axis(quotas, np.argsort(mixing.reshape(quotas.shape), axis=1), axis=1)
        return mixed.reshape(-1)[: last - first]

    def _cells(self, category: int, draws: Int64) -> Int64:
        """Numbers in the category of the cells that its draws with these numbers in the epoch take."""
        size = int(self._order.categories.sizes[category])
        passes, offsets = draws // size, draws % size
        # A random start makes every cell equally likely at every place.
        first, last = int(passes[0]), int(passes[-1]) + 1
        starts = (uniforms(first, last, self._salt(STARTS, category)) * size).astype(np.int64)
        offsets = (offsets + starts[passes - first]) % size
        blocks = -(-size // BLOCK_CELLS)
        if blocks == 1:
            return offsets
        cells = np.empty_like(offsets)
        short = size - (blocks - 1) * BLOCK_CELLS
        for number in range(first, last):
            inside = passes == number
            order = self._blocks(category, number, blocks)
            # The last block is short: what follows it is counted as if it were not.
            behind = offsets[inside] >= int(np.flatnonzero(order == blocks - 1)[0]) * BLOCK_CELLS + short
            places = offsets[inside] + behind * (BLOCK_CELLS - short)
            cells[inside] = order[places // BLOCK_CELLS] * BLOCK_CELLS + places % BLOCK_CELLS
        return cells

    def _blocks(self, category: int, number: int, blocks: int) -> Int64:
        """The order of a category's blocks in its pass ``number``; the last one asked for is kept."""
        kept = self._passes.get(category)
        if kept is None or kept[0] != number:
            kept = number, permutation(blocks, self._salt(BLOCKS, category, number))
            self._passes[category] = kept
        return kept[1]

    def _salt(self, *numbers: int) -> np.uint64:
        return salt(self._order.seed, self._number, *numbers)


def weighted_draws(
    store: Store,
    column: str,
    weights: Mapping[Any, float] | Literal["balanced", "proportional"],
    selection: Selection | None,
    *,
    window_cells: int,
    batch_cells: int | None,
    stratified: bool,
    seed: int,
) -> WeightedDraws:
    """Draws of the selected cells by the values of an obs column; see ``WeightedDraws`` and ``ShardDataset``.

    Raises:
        DataError: no such column, too many values, a value without a weight, weights that are not positive.
    """
    values, codes = ObsColumn.read(store, column).coded()
    if len(values) > MAX_CATEGORIES:
        raise DataError(
            f"the obs column {column} has {len(values) - 1:,} values, more than the {MAX_CATEGORIES:,} that "
            "weights can tell apart: use a coarser column."
        )
    if selection is not None:
        # Wide enough for one number more than there are values: 255 values and "missing" fill a uint8.
        codes = codes.astype(np.min_scalar_type(len(values)))
        codes[~selection.cells(store.n_cells)] = len(values)
    categories = Categories(codes, len(values))
    present = categories.sizes > 0
    if weights == "balanced":
        wanted = present.astype(np.float64)
        wanted[0] = 0.0
    elif weights == "proportional":
        wanted = categories.sizes.astype(np.float64)
        wanted[0] = 0.0
    elif isinstance(weights, str):
        raise DataError(
            f"weights {weights!r} are unknown: use 'balanced' or 'proportional', or {{value: weight}}."
        )
    else:
        wanted = _given(column, values, weights, present)
    if not wanted.any():
        raise DataError(f"no cell has a value of {column} with a weight: name such values in the weights.")
    return WeightedDraws(
        categories,
        wanted,
        window_cells=window_cells,
        batch_cells=batch_cells,
        stratified=stratified,
        seed=seed,
    )


def _given(
    column: str, values: list[Any], weights: Mapping[Any, float], present: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """The weight of each value; 0 for values that no selected cell has."""
    unknown = [value for value in weights if value not in values]
    if unknown:
        raise DataError(f"weights name {unknown[0]!r}, which no cell of the store has as its {column}.")
    missing = [
        value for value, there in zip(values[1:], present[1:], strict=True) if there and value not in weights
    ]
    if missing:
        raise DataError(
            f"the weights of {column} lack {missing[0]!r} and {len(missing) - 1} more values: "
            "give each a weight, 0 to leave its cells out."
        )
    numbers = np.array([float(weights.get(value, 0.0)) for value in values])
    if not np.isfinite(numbers).all() or (numbers < 0).any():
        raise DataError(f"the weights of {column} must be finite and not negative.")
    return np.where(present, numbers, 0.0)
