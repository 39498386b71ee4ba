"""Masking of the pretraining objective: raw counts in CSR form to encoder tokens and decoder targets.

Cost on CPU: one random word for each of C x n_genes positions (the zeros too), four words a Philox call, and
one word for each molecule (UMI) of a cell that is thinned. Everything else grows with the non-zeros.

Shape legend: C cells, G genes, Z stored entries (non-zeros of the raw cells), X chosen positions, N encoder
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cellfoundry_kernels.philox import philox4x32

NORMALIZED_TOTAL = 1e4
# Below this raw total a cell is too shallow to be thinned further (read-depth-aware objective).
THINNING_MINIMUM_TOTAL = 1000
# Molecules are drawn four to a Philox call; this many calls at a time bound the memory at about 0.5 GB.
_THINNING_BLOCKS = 1 << 21

# Second counter word: which decision a random word is for (low 3 bits) and at which position (the rest).
_DEPTH, _THINNING, _CHOICE, _REPLACEMENT = range(4)
_POSITION_SHIFT = 3


@dataclass(frozen=True)
class MaskedCells:
    """A batch ready for the masked objective.

    Attributes:
        value_N: float32, encoder token values: log1p per 1e4 of the genes, then T, then S of each cell.
        position_N: int64, their positions: the gene id, n_genes for T, n_genes + 1 for S.
        cu_seqlens: int32, (C + 1,); cell ``c`` owns tokens ``cu_seqlens[c]:cu_seqlens[c + 1]``.
        max_seqlen: Tokens of the longest cell.
        mask_cell_index_X: int64, cell of each chosen position; cells and positions ascend.
        mask_position_X: int64, the chosen positions (genes only).
        mask_value_X: float32, what the decoder is given there: the mask token id, a random value or the kept
            value.
        target_X: float32, log1p per 1e4 of the raw cell there.
    """

    value_N: Tensor
    position_N: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    mask_cell_index_X: Tensor
    mask_position_X: Tensor
    mask_value_X: Tensor
    target_X: Tensor


class _CellRandom:
    """Random words of each cell, keyed (seed, step, cell id): the same whoever shares the batch."""

    def __init__(self, seed: int, step: int, cell_ids: Tensor) -> None:
        for name, number in (("seed", seed), ("step", step)):
            if not 0 <= number < 1 << 32:
                raise ValueError(f"mask_cells got {name} {number}: use an integer from 0 to 2^32 - 1.")
        self._key = (seed, step)
        ids_C = cell_ids.long()
        self._low_C, self._high_C = ids_C & 0xFFFFFFFF, ids_C >> 32 & 0xFFFFFFFF

    def words(self, stream: int, cell: Tensor, position: Tensor | int, index: Tensor) -> Tensor:
        """Four words, (..., 4), for decision ``stream`` at ``position`` of ``cell``; arguments broadcast."""
        decision = torch.as_tensor(stream | position << _POSITION_SHIFT, device=cell.device)
        return philox4x32((index, decision, self._low_C[cell], self._high_C[cell]), self._key)


def mask_cells(
    indptr: Tensor,
    gene_ids: Tensor,
    counts: Tensor,
    cell_ids: Tensor,
    *,
    n_genes: int,
    seed: int,
    step: int,
    value_mask_prob: float = 0.3,
    zero_mask_prob: float = 0.03,
    replace_prob: float = 0.8,
    random_prob: float = 0.1,
    read_depth_aware: bool = True,
    mask_token_id: float = 102.0,
) -> MaskedCells:
    """Thin, normalise and mask raw cells; a cell's result depends on (seed, step, its id, its counts) alone.

    Thinning (read-depth-aware): a cell whose total is at least 1,000 is thinned with probability 0.5, each
    molecule kept with probability p ~ Beta(2, 2) (the median of three uniforms), so a count becomes
    Binomial(count, p). S is log10 of the input's total, T of the raw total (totals below 1 count as 1).
    Positions are then chosen one by one, with ``value_mask_prob`` where the input is non-zero and
    ``zero_mask_prob`` where it is zero.

    Args:
        indptr: int64, (C + 1,), CSR rows.
        gene_ids: Integer gene ids, (Z,), strictly ascending in a cell.
        counts: Raw counts > 0, whole numbers where ``read_depth_aware``, (Z,).
        cell_ids: int64 id of each cell, (C,), for example its row in the store.
        n_genes: Genes of the vocabulary.
        seed: 0 to 2^32 - 1.
        step: 0 to 2^32 - 1; another step gives other masks.
        value_mask_prob: Share of the input's non-zero positions that is chosen.
        zero_mask_prob: Share of the input's zero positions that is chosen.
        replace_prob: Share of the chosen that becomes the mask token; such a position is no encoder token.
        random_prob: Share of the chosen that takes a random non-zero value of the same input cell; the rest
            is kept.
        read_depth_aware: Whether cells are thinned.
        mask_token_id: Value that stands for the mask token.

    Raises:
        ValueError: seed or step out of range, or counts to be thinned that are not whole numbers.
    """
    random = _CellRandom(seed, step, cell_ids)
    device, n_cells = counts.device, len(indptr) - 1
    position_Z = gene_ids.long()
    cell_Z = torch.repeat_interleave(torch.arange(n_cells, device=device), indptr.diff())
    raw_Z = counts.double()
    input_Z = _thin(raw_Z, cell_Z, position_Z, n_cells, random) if read_depth_aware else raw_Z

    raw_total_C, input_total_C = _totals(raw_Z, cell_Z, n_cells), _totals(input_Z, cell_Z, n_cells)
    target_Z = _normalise(raw_Z, raw_total_C[cell_Z])
    value_Z = _normalise(input_Z, input_total_C[cell_Z])
    expressed_Z = input_Z > 0
    key_Z = cell_Z * n_genes + position_Z

    key_X = _choose(key_Z[expressed_Z], n_cells, n_genes, value_mask_prob, zero_mask_prob, random)
    cell_X, position_X = key_X // n_genes, key_X % n_genes
    target_X, kept_X = _look_up(key_X, key_Z, target_Z, value_Z)
    # One word decides between mask token, random value and kept value, another one draws the random value.
    word_X4 = random.words(_REPLACEMENT, cell_X, position_X, torch.zeros_like(cell_X))
    masked_X = word_X4[:, 0] < _threshold(replace_prob)
    is_random_X = ~masked_X & (word_X4[:, 0] < _threshold(replace_prob + random_prob))
    mask_value_X = kept_X.masked_fill(masked_X, mask_token_id)
    mask_value_X[is_random_X] = _draw(
        word_X4[is_random_X, 1], cell_X[is_random_X], value_Z[expressed_Z], cell_Z[expressed_Z], n_cells
    )

    is_token_X = ~masked_X & (mask_value_X > 0)
    untouched_Z = expressed_Z & ~torch.isin(key_Z, key_X, assume_unique=True)
    cells_C = torch.arange(n_cells, device=device)
    t_position_C = torch.full_like(cells_C, n_genes)
    # Sorting by (cell, position) puts the genes in order and T, then S, behind them.
    cell = torch.cat([cell_Z[untouched_Z], cell_X[is_token_X], cells_C, cells_C])
    position = torch.cat([position_Z[untouched_Z], position_X[is_token_X], t_position_C, t_position_C + 1])
    value = torch.cat(
        [
            value_Z[untouched_Z],
            mask_value_X[is_token_X],
            raw_total_C.log10().float(),
            input_total_C.log10().float(),
        ]
    )
    order = (cell * (n_genes + 2) + position).argsort()
    lengths_C = torch.bincount(cell, minlength=n_cells)
    return MaskedCells(
        value_N=value[order],
        position_N=position[order],
        cu_seqlens=torch.cat([lengths_C.new_zeros(1), lengths_C.cumsum(0)]).int(),
        max_seqlen=int(lengths_C.max()) if n_cells else 0,
        mask_cell_index_X=cell_X,
        mask_position_X=position_X,
        mask_value_X=mask_value_X,
        target_X=target_X,
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
    if bool((raw_Z != raw_Z.round()).any()):
        raise ValueError(
            "mask_cells was asked to thin counts that are not whole numbers: give raw counts, or "
            "read_depth_aware=False."
        )
    cells_C = torch.arange(n_cells, device=raw_Z.device)
    word_C4 = random.words(_DEPTH, cells_C, 0, torch.zeros_like(cells_C))
    thinned_C = (word_C4[:, 0] < 1 << 31) & (_totals(raw_Z, cell_Z, n_cells) >= THINNING_MINIMUM_TOTAL)
    threshold_C = word_C4[:, 1:].median(-1).values

    # Z from here on: entries of the thinned cells only. A block is four molecules of one entry.
    entry_Z = thinned_C[cell_Z].nonzero()[:, 0]
    count_Z = raw_Z[entry_Z].long()
    last_block_Z = ((count_Z + 3) // 4).cumsum(0)
    kept_Z = torch.zeros_like(count_Z)
    lanes_4 = torch.arange(4, device=raw_Z.device)
    n_blocks = int(last_block_Z[-1]) if len(entry_Z) else 0
    for start in range(0, n_blocks, _THINNING_BLOCKS):
        block = torch.arange(start, min(start + _THINNING_BLOCKS, n_blocks), device=raw_Z.device)
        owner = torch.searchsorted(last_block_Z, block, right=True)
        index = block - last_block_Z[owner] + (count_Z[owner] + 3) // 4
        cell = cell_Z[entry_Z[owner]]
        word_4 = random.words(_THINNING, cell, position_Z[entry_Z[owner]], index)
        is_molecule_4 = index[:, None] * 4 + lanes_4 < count_Z[owner][:, None]
        kept_4 = is_molecule_4 & (word_4 < threshold_C[cell][:, None])
        kept_Z.index_add_(0, owner, kept_4.sum(-1))
    return raw_Z.index_put((entry_Z,), kept_Z.double())


def _choose(
    expressed_key: Tensor,
    n_cells: int,
    n_genes: int,
    value_prob: float,
    zero_prob: float,
    random: _CellRandom,
) -> Tensor:
    """Keys (cell * n_genes + position) of the chosen positions, ascending."""
    device = expressed_key.device
    block = torch.arange((n_genes + 3) // 4, device=device)
    cells_C1 = torch.arange(n_cells, device=device)[:, None]
    word_CG = random.words(_CHOICE, cells_C1, 0, block).flatten(1)[:, :n_genes]
    threshold = torch.full((n_cells * n_genes,), _threshold(zero_prob), device=device)
    threshold[expressed_key] = _threshold(value_prob)
    return (word_CG < threshold.view(n_cells, n_genes)).flatten().nonzero()[:, 0]


def _threshold(probability: float) -> int:
    """A random word is below this with the given probability (to 2^-32)."""
    return round(probability * (1 << 32))


def _look_up(key_X: Tensor, key_Z: Tensor, *columns_Z: Tensor) -> tuple[Tensor, ...]:
    """Each column at the entries with the given keys; 0 where no entry is stored."""
    if not len(key_Z):
        return tuple(column_Z.new_zeros(len(key_X)) for column_Z in columns_Z)
    entry_X = torch.searchsorted(key_Z, key_X).clamp(max=len(key_Z) - 1)
    found_X = key_Z[entry_X] == key_X
    return tuple(torch.where(found_X, column_Z[entry_X], 0.0) for column_Z in columns_Z)


def _draw(
    word: Tensor, cell: Tensor, expressed_value: Tensor, expressed_cell: Tensor, n_cells: int
) -> Tensor:
    """A value of the own cell for each random word; 0 in a cell whose input is all zeros."""
    expressed_C = torch.bincount(expressed_cell, minlength=n_cells)
    first_C = expressed_C.cumsum(0) - expressed_C
    # The appended zero is what an empty cell at the end of the batch draws.
    drawn = torch.cat([expressed_value, expressed_value.new_zeros(1)])
    value = drawn[first_C[cell] + (word * expressed_C[cell] >> 32)]
    return torch.where(expressed_C[cell] > 0, value, 0.0)
