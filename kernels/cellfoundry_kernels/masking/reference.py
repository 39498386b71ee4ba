"""Masking in plain torch: the twin of the kernels, and the CPU path.

Choosing is dense: one random word for each of C x n_genes positions, four words a Philox call. Positions lie in
(C, P) tables of one value and one flag each, so that a position is looked up, not searched, and tokens come out in
order. Thinning takes one word for each molecule (UMI) of a thinned cell.

Shape legend: C cells, G genes, P positions (the genes, T, S), I Philox calls of a cell, Z stored entries (non-zeros
of the raw cells), E those whose input is not zero, X chosen positions, N encoder tokens.
"""

from __future__ import annotations

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
)
from cellfoundry_kernels.philox import philox4x32

# Molecules are drawn four to a Philox call; this many calls at a time bound the memory at about 0.5 GB.
_THINNING_CALLS = 1 << 21


class _CellRandom:
    """Random words of each cell, keyed (seed, step, cell id): the same whoever shares the batch."""

    def __init__(self, seed: int, step: int, cell_ids: Tensor) -> None:
        self._key = (seed, step)
        ids_C = cell_ids.long()
        self._low_C, self._high_C = ids_C & 0xFFFFFFFF, ids_C >> 32 & 0xFFFFFFFF

    def words(self, decision: Tensor | int, cell: Tensor, index: Tensor) -> Tensor:
        """Four words, (..., 4), of a decision about ``cell``; arguments broadcast."""
        decision = torch.as_tensor(decision, device=cell.device)
        return philox4x32((index, decision, self._low_C[cell], self._high_C[cell]), self._key)


def mask_cells(
    indptr: Tensor, gene_ids: Tensor, counts: Tensor, cell_ids: Tensor, settings: Settings
) -> MaskedCells:
    """As ``cellfoundry_kernels.masking``."""
    n_genes, seed, step, at_value, at_zero, read_depth_aware, mask_token_id = settings
    random = _CellRandom(seed, step, cell_ids)
    n_cells = len(indptr) - 1
    cells_C = torch.arange(n_cells, device=counts.device)
    position_Z, cell_Z = gene_ids.long(), cells_C.repeat_interleave(indptr.diff(), output_size=len(counts))
    raw_Z = counts.double()
    input_Z = _thin(raw_Z, cell_Z, position_Z, n_cells, random) if read_depth_aware else raw_Z
    raw_total_C, input_total_C = _totals(raw_Z, cell_Z, n_cells), _totals(input_Z, cell_Z, n_cells)
    target_CP = torch.zeros(n_cells, n_genes + 2, device=counts.device)
    target_CP[cell_Z, position_Z] = _normalise(raw_Z, raw_total_C[cell_Z])

    # What the encoder is to see: the non-zeros of the input, T and S, and, below, what chosen positions become.
    expressed_Z = input_Z > 0
    cell_E, position_E = cell_Z[expressed_Z], position_Z[expressed_Z]
    value_E = _normalise(input_Z[expressed_Z], input_total_C[cell_E])
    value_CP, is_token_CP = torch.zeros_like(target_CP), torch.zeros_like(target_CP, dtype=torch.bool)
    value_CP[cell_E, position_E], is_token_CP[cell_E, position_E] = value_E, True
    value_CP[:, n_genes:] = torch.stack([raw_total_C, input_total_C], 1).log10().float()
    is_token_CP[:, n_genes:] = True

    chosen_X, masked_X, random_X = _choose(is_token_CP[:, :n_genes], at_value, at_zero, random)
    cell_X, position_X = chosen_X
    expressed_C = torch.bincount(cell_E, minlength=n_cells)
    shown_X = value_CP[chosen_X].masked_fill(masked_X, mask_token_id)
    shown_X[random_X] = _draw(cell_X[random_X], position_X[random_X], value_E, expressed_C, random)
    value_CP[chosen_X] = shown_X
    is_token_CP[chosen_X] = ~masked_X & (is_token_CP[chosen_X] | random_X & (expressed_C > 0)[cell_X])

    cu_seqlens = torch.zeros(n_cells + 1, dtype=torch.int32, device=counts.device)
    lengths_C = is_token_CP.sum(1)
    cu_seqlens[1:] = lengths_C.cumsum(0)
    place_N = is_token_CP.flatten().nonzero()[:, 0]
    return MaskedCells(
        value_N=value_CP.flatten()[place_N],
        position_N=place_N % (n_genes + 2),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths_C.max()) if n_cells else 0,
        mask_cell_index_X=cell_X,
        mask_position_X=position_X,
        mask_value_X=shown_X,
        target_X=target_CP[chosen_X],
    )


def _totals(count_Z: Tensor, cell_Z: Tensor, n_cells: int) -> Tensor:
    """Sum of each cell, float64; 1 for a cell without counts, so that logs and quotients are finite."""
    total_C = count_Z.new_zeros(n_cells).index_add_(0, cell_Z, count_Z)
    return torch.where(total_C > 0, total_C, 1.0)


def _normalise(count: Tensor, total: Tensor) -> Tensor:
    """log1p of counts per 1e4, float32."""
    return (count / total * NORMALIZED_TOTAL).log1p().float()


def _thin(raw_Z: Tensor, cell_Z: Tensor, position_Z: Tensor, n_cells: int, random: _CellRandom) -> Tensor:
    """Counts of the input: raw, or each molecule kept with its cell's probability."""
    if not bool(((raw_Z == raw_Z.round()) & (raw_Z >= 0) & (raw_Z < THINNING_COUNT_LIMIT)).all()):
        raise not_whole_numbers()
    cells_C = torch.arange(n_cells, device=raw_Z.device)
    word_C4 = random.words(DEPTH, cells_C, torch.zeros_like(cells_C))
    thinned_C = (word_C4[:, 0] < 1 << 31) & (_totals(raw_Z, cell_Z, n_cells) >= THINNING_MINIMUM_TOTAL)
    threshold_C = word_C4[:, 1:].median(-1).values

    # Z from here on: entries of the thinned cells only. A call draws the words of four molecules of one entry.
    entry_Z = thinned_C[cell_Z].nonzero()[:, 0]
    cell_Z, count_Z = cell_Z[entry_Z], raw_Z[entry_Z].long()
    decision_Z = THINNING | position_Z[entry_Z] << POSITION_SHIFT
    calls_Z = (count_Z + 3) // 4
    last_Z = calls_Z.cumsum(0)
    first_Z = last_Z - calls_Z
    kept_Z = torch.zeros_like(count_Z)
    lanes_4 = torch.arange(4, device=raw_Z.device)
    n_calls = int(last_Z[-1]) if len(entry_Z) else 0
    for start in range(0, n_calls, _THINNING_CALLS):
        stop = min(start + _THINNING_CALLS, n_calls)
        owner = torch.repeat_interleave(last_Z.clamp(start, stop) - first_Z.clamp(start, stop))
        index = torch.arange(start, stop, device=raw_Z.device) - first_Z[owner]
        word_4 = random.words(decision_Z[owner], cell_Z[owner], index)
        is_molecule_4 = lanes_4 < (count_Z[owner] - index * 4)[:, None]
        kept_4 = is_molecule_4 & (word_4 < threshold_C[cell_Z[owner]][:, None])
        kept_Z.index_add_(0, owner, kept_4.sum(-1))
    return raw_Z.index_put((entry_Z,), kept_Z.double())


def _choose(
    is_expressed_CG: Tensor, at_value: Thresholds, at_zero: Thresholds, random: _CellRandom
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Cells and positions that are chosen, and which of them show the mask token, and which a random value."""
    n_cells, n_genes = is_expressed_CG.shape
    device = is_expressed_CG.device
    cells_C1, index_I = (
        torch.arange(n_cells, device=device)[:, None],
        torch.arange((n_genes + 3) // 4, device=device),
    )
    word_CG = random.words(CHOICE, cells_C1, index_I).flatten(1)[:, :n_genes]
    at_value_CG = (word_CG < at_value.chosen).logical_and_(is_expressed_CG)
    at_zero_CG = (word_CG < at_zero.chosen).logical_and_(~is_expressed_CG)
    chosen_X = (at_value_CG | at_zero_CG).nonzero(as_tuple=True)
    word_X, expressed_X = word_CG[chosen_X], is_expressed_CG[chosen_X]
    masked_X = word_X < torch.where(expressed_X, at_value.masked, at_zero.masked)
    random_X = ~masked_X & (word_X < torch.where(expressed_X, at_value.random, at_zero.random))
    return chosen_X, masked_X, random_X


def _draw(
    cell: Tensor, position: Tensor, expressed_value: Tensor, expressed_C: Tensor, random: _CellRandom
) -> Tensor:
    """A value of the own cell for each position; 0 in a cell whose input is all zeros."""
    word = random.words(DRAW, cell, position // 4).gather(-1, position[..., None] % 4)[..., 0]
    first_C = expressed_C.cumsum(0) - expressed_C
    # The appended zero is what an empty cell at the end of the batch draws.
    drawn = torch.cat([expressed_value, expressed_value.new_zeros(1)])
    value = drawn[first_C[cell] + (word * expressed_C[cell] >> 32)]
    return torch.where(expressed_C[cell] > 0, value, 0.0)
