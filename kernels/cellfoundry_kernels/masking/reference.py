"""Masking in numpy: the twin of the kernels, and the CPU path.

Choosing is dense: one random word for each of C x n_genes positions, four words a Philox call. Positions lie in (C, P)
tables of one value and one flag each, so that a position is looked up, not searched, and tokens come out in order.
Cells are taken a few at a time, so that tables and random words stay in the cache: a batch costs a quarter of what it
does all at once in torch, and its memory does not grow with C x P. Thinning takes one word for each molecule (UMI) of a
thinned cell.

Shape legend: C cells, P positions (genes, T, S, rounded up to whole Philox calls), I Philox calls of a cell, Z stored
entries (non-zeros of the raw cells), E those whose input is not zero, X chosen positions, N encoder tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cellfoundry_kernels.masking.definition import (
    CHOICE,
    DEPTH,
    DRAW,
    NORMALIZED_TOTAL,
    POSITION_SHIFT,
    THINNING,
    THINNING_COUNT_LIMIT,
    THINNING_MINIMUM_TOTAL,
    MaskedCells,
    Settings,
    Thresholds,
    not_whole_numbers,
    results_of_unknown_size,
)
from cellfoundry_kernels.philox import philox4x32

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

# Positions whose tables and random words are held at a time (6 MB); 27 cells of 19,264 genes.
_BLOCK_POSITIONS = 1 << 19
# Molecules are drawn four to a Philox call, this many calls at a time.
_THINNING_CALLS = 1 << 15


class _Cells(NamedTuple):
    """Stored entries of a block of cells, cell after cell.

    Attributes:
        cell_Z: Cell in the block.
        gene_Z: Gene.
        raw_Z: Count, float64.
        ids_C: Id of each cell.
        key: Seed and step.
    """

    cell_Z: Array
    gene_Z: Array
    raw_Z: Doubles
    ids_C: Array
    key: tuple[int, int]

    def words(self, decision: Array | int, cell: Array, index: Array) -> npt.NDArray[np.uint32]:
        """Four random words, (..., 4), of a decision about cells: the same whoever shares the batch."""
        low_C, high_C = (
            half.astype(np.uint64) for half in (self.ids_C & 0xFFFFFFFF, self.ids_C >> 32 & 0xFFFFFFFF)
        )
        counter = (index.astype(np.uint64), np.asarray(decision, dtype=np.uint64), low_C[cell], high_C[cell])
        return philox4x32(counter, self.key)

    def totals(self, count_Z: Doubles) -> Doubles:
        """Sum of each cell; 1 for a cell without counts, so that logs and quotients are finite."""
        total_C = np.bincount(self.cell_Z, weights=count_Z, minlength=len(self.ids_C))
        return np.where(total_C > 0, total_C, 1.0)


def mask_cells(
    indptr: Tensor, gene_ids: Tensor, counts: Tensor, cell_ids: Tensor, settings: Settings
) -> MaskedCells:
    """As ``cellfoundry_kernels.masking``."""
    n_genes, seed, step, at_value, at_zero, read_depth_aware, mask_token_id = settings
    value_N, position_N, cu_seqlens, *columns_X, max_seqlen = _mask_cells(
        *(indptr, gene_ids, counts, cell_ids, n_genes, seed, step, [*at_value, *at_zero]),
        *(read_depth_aware, mask_token_id),
    )
    return MaskedCells(value_N, position_N, cu_seqlens, max_seqlen, *columns_X)


@torch.library.custom_op("cellfoundry::mask_cells_on_host", mutates_args=())
def _mask_cells(
    indptr: Tensor,
    gene_ids: Tensor,
    counts: Tensor,
    cell_ids: Tensor,
    n_genes: int,
    seed: int,
    step: int,
    thresholds: list[int],
    thins: bool,
    mask_token_id: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Columns of ``MaskedCells``, ``max_seqlen`` last; thresholds are those of values, then those of zeros."""
    at_value, at_zero = Thresholds(*thresholds[:3]), Thresholds(*thresholds[3:])
    settings = Settings(n_genes, seed, step, at_value, at_zero, thins, mask_token_id)
    bounds_C1, gene_Z, count_Z, ids_C = (x.cpu().numpy() for x in (indptr, gene_ids, counts, cell_ids))
    _check_entries(bounds_C1, gene_Z, n_genes)
    block = max(_BLOCK_POSITIONS // max(n_genes, 1), 1)
    columns: list[list[Array]] = [[np.empty(0, kind)] for kind in ("f4", "i8", "i8", "i8", "i8", "f4", "f4")]
    for first in range(0, len(ids_C), block):
        block_C1 = bounds_C1[first : first + block + 1]
        entries = slice(block_C1[0], block_C1[-1])
        cell_Z = np.repeat(np.arange(len(block_C1) - 1), np.diff(block_C1))
        raw_Z = count_Z[entries].astype(np.float64)
        cells = _Cells(cell_Z, gene_Z[entries], raw_Z, ids_C[first : first + block], (seed, step))
        for column, found in zip(columns, _mask_block(cells, settings), strict=True):
            column.append(found)
        columns[3][-1] += first
    value_N, position_N, length_C, *columns_X = (np.concatenate(column) for column in columns)
    cu_seqlens = np.concatenate([[0], length_C.cumsum()]).astype(np.int32)
    results = (torch.from_numpy(x).to(counts.device) for x in (value_N, position_N, cu_seqlens, *columns_X))
    return (*results, int(length_C.max(initial=0)))  # type: ignore[return-value]


@_mask_cells.register_fake
def _(indptr, gene_ids, counts, cell_ids, *settings):  # type: ignore[no-untyped-def]
    return results_of_unknown_size(counts, cell_ids.shape[0])


def _check_entries(bounds_C1: Array, gene_Z: Array, n_genes: int) -> None:
    """Entries out of order or range would fall on other genes and cells."""
    if bounds_C1[0] != 0 or bounds_C1[-1] != len(gene_Z) or (bounds_C1[1:] < bounds_C1[:-1]).any():
        raise ValueError(f"mask_cells got row bounds that do not ascend from 0 to its {len(gene_Z)} entries.")
    if len(gene_Z) and not (gene_Z.min() >= 0 and gene_Z.max() < n_genes):
        raise ValueError(
            f"mask_cells got gene ids from {gene_Z.min()} to {gene_Z.max()}: give ids from 0 to {n_genes - 1}."
        )
    ascends_Z = gene_Z[1:] > gene_Z[:-1]
    inner_C = bounds_C1[1:-1]
    ascends_Z[inner_C[(inner_C > 0) & (inner_C < len(gene_Z))] - 1] = True
    if not ascends_Z.all():
        raise ValueError(
            "mask_cells got gene ids that do not ascend in a cell: sort each row, each gene once."
        )


def _mask_block(cells: _Cells, settings: Settings) -> tuple[Array, ...]:
    """Values and positions of the block's tokens, tokens of each cell, and the four columns of chosen positions."""
    n_genes, _, _, at_value, at_zero, read_depth_aware, mask_token_id = settings
    cell_Z, n_cells = cells.cell_Z, len(cells.ids_C)
    input_Z = _thin(cells) if read_depth_aware else cells.raw_Z
    raw_total_C, input_total_C = cells.totals(cells.raw_Z), cells.totals(input_Z)

    # What the encoder is to see: the non-zeros of the input, T and S, and, below, what chosen positions become.
    calls = (n_genes + 2 + 3) // 4
    place_Z = cell_Z * (4 * calls) + cells.gene_Z
    place_E, cell_E = place_Z[input_Z > 0], cell_Z[input_Z > 0]
    value_E = _normalise(input_Z[input_Z > 0], input_total_C[cell_E])
    value_CP = np.zeros((n_cells, 4 * calls), dtype=np.float32)
    target_CP, is_token_CP = np.zeros_like(value_CP), np.zeros_like(value_CP, dtype=np.bool_)
    target_CP.ravel()[place_Z] = _normalise(cells.raw_Z, raw_total_C[cell_Z])
    value_CP.ravel()[place_E], is_token_CP.ravel()[place_E] = value_E, True

    word_CP = cells.words(CHOICE, np.arange(n_cells)[:, None], np.arange(calls)).reshape(n_cells, -1)
    chosen_CP = word_CP < at_zero.chosen
    chosen_CP.ravel()[place_E] = word_CP.ravel()[place_E] < at_value.chosen
    chosen_CP[:, n_genes:] = False
    place_X = np.flatnonzero(chosen_CP)
    _, cell_X, position_X = _rows_and_columns(place_X, chosen_CP.shape)
    word_X, expressed_X = word_CP.ravel()[place_X], is_token_CP.ravel()[place_X]
    masked_X = word_X < np.where(expressed_X, at_value.masked, at_zero.masked)
    random_X = ~masked_X & (word_X < np.where(expressed_X, at_value.random, at_zero.random))

    expressed_C = np.bincount(cell_E, minlength=n_cells)
    shown_X = value_CP.ravel()[place_X]
    shown_X[masked_X] = mask_token_id
    shown_X[random_X] = _draw(cells, cell_X[random_X], position_X[random_X], value_E, expressed_C)
    value_CP.ravel()[place_X] = shown_X
    is_token_CP.ravel()[place_X] = ~masked_X & (expressed_X | random_X & (expressed_C > 0)[cell_X])
    value_CP[:, n_genes], value_CP[:, n_genes + 1] = np.log10(raw_total_C), np.log10(input_total_C)
    is_token_CP[:, n_genes : n_genes + 2] = True
    place_N = np.flatnonzero(is_token_CP)
    length_C, _, position_N = _rows_and_columns(place_N, is_token_CP.shape)
    columns_X = (cell_X, position_X, shown_X, target_CP.ravel()[place_X])
    return value_CP.ravel()[place_N], position_N, length_C, *columns_X


def _rows_and_columns(place: Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Ascending flat places of a table: how many a row has, and the row and column of each (divmod takes longer)."""
    rows, columns = shape
    count_C = np.diff(np.searchsorted(place, np.arange(rows + 1) * columns))
    row = np.repeat(np.arange(rows), count_C)
    return count_C, row, place - row * columns


def _normalise(count: Doubles, total: Doubles) -> npt.NDArray[np.float32]:
    """log1p of counts per 1e4."""
    return np.log1p(count / total * NORMALIZED_TOTAL).astype(np.float32)


def _thin(cells: _Cells) -> Doubles:
    """Counts of the input: raw, or each molecule kept with its cell's probability."""
    raw_Z = cells.raw_Z
    if not ((raw_Z == np.rint(raw_Z)) & (raw_Z >= 0) & (raw_Z < THINNING_COUNT_LIMIT)).all():
        raise not_whole_numbers()
    word_C4 = cells.words(DEPTH, np.arange(len(cells.ids_C)), np.zeros(1))
    thinned_C = (word_C4[:, 0] < 1 << 31) & (cells.totals(raw_Z) >= THINNING_MINIMUM_TOTAL)
    threshold_C = np.sort(word_C4[:, 1:], axis=1)[:, 1]

    # Z from here on: entries of the thinned cells only. A call draws the words of four molecules of one entry.
    entry_Z = np.flatnonzero(thinned_C[cells.cell_Z])
    cell_Z, count_Z = cells.cell_Z[entry_Z], raw_Z[entry_Z].astype(np.int64)
    decision_Z = THINNING | cells.gene_Z[entry_Z].astype(np.int64) << POSITION_SHIFT
    last_Z = ((count_Z + 3) // 4).cumsum()
    first_Z = last_Z - (count_Z + 3) // 4
    kept_Z = np.zeros_like(count_Z)
    n_calls = int(last_Z[-1]) if len(entry_Z) else 0
    for start in range(0, n_calls, _THINNING_CALLS):
        stop = min(start + _THINNING_CALLS, n_calls)
        owner = np.repeat(np.arange(len(entry_Z)), last_Z.clip(start, stop) - first_Z.clip(start, stop))
        index = np.arange(start, stop) - first_Z[owner]
        word_4 = cells.words(decision_Z[owner], cell_Z[owner], index)
        left, threshold = count_Z[owner] - index * 4, threshold_C[cell_Z[owner]]
        kept = sum((word_4[:, lane] < threshold) & (lane < left) for lane in range(4))
        kept_Z += np.bincount(owner, weights=kept, minlength=len(entry_Z)).astype(np.int64)
    input_Z = raw_Z.copy()
    input_Z[entry_Z] = kept_Z
    return input_Z


def _draw(cells: _Cells, cell: Array, position: Array, value_E: Array, expressed_C: Array) -> Array:
    """A value of the own cell for each position; 0 in a cell whose input is all zeros."""
    words = cells.words(DRAW, cell, position // 4)
    word = words[np.arange(len(words)), position % 4].astype(np.int64)
    first_C = expressed_C.cumsum() - expressed_C
    # The appended zero is what an empty cell at the end of the block draws.
    value = np.append(value_E, np.float32(0))[first_C[cell] + (word * expressed_C[cell] >> 32)]
    return np.where(expressed_C[cell] > 0, value, np.float32(0))
