"""What defines a mask, shared by both twins: random streams, thresholds on random words, and the result.

Every decision reads words of Philox4x32-10 with key (seed, step) and counter (index, decision, low and high half
of the cell id), so it depends on nothing else:

- ``DEPTH``: index 0; word 0 decides whether the cell is thinned, the median of words 1 to 3 is its p.
- ``THINNING`` of gene ``g`` (decision ``THINNING | g << POSITION_SHIFT``): one word a molecule, word ``m % 4`` of
  index ``m // 4``.
- ``CHOICE`` of gene ``g``: word ``g % 4`` of index ``g // 4``. This one word says whether the position is chosen and
  what it shows then: the lowest words mean the mask token, the next ones a random value, the next ones the kept
  value, the rest not chosen.
- ``DRAW`` of gene ``g``: word ``g % 4`` of index ``g // 4``; which of the cell's own values a random one is.
- ``CONTEXT``: not of the mask, but of the sample of zeros that a decoder may be trained on (``decoder_context``).

Shape legend: N encoder tokens, C cells, X chosen positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NORMALIZED_TOTAL = 1e4
# Below this raw total a cell is too shallow to be thinned further (read-depth-aware objective).
THINNING_MINIMUM_TOTAL = 1000
# Counts that are thinned are below this, so that a gene's kept molecules fit an int32.
THINNING_COUNT_LIMIT = 1 << 31

DEPTH, THINNING, CHOICE, DRAW, CONTEXT = range(5)
POSITION_SHIFT = 3


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


class Thresholds(NamedTuple):
    """A random word below ``masked`` shows the mask token, else below ``random`` a random value, else below
    ``chosen`` the kept value."""

    masked: int
    random: int
    chosen: int

    @classmethod
    def of(cls, chosen_prob: float, replace_prob: float, random_prob: float) -> Thresholds:
        """Thresholds of a position that is chosen with ``chosen_prob``, to 2^-32."""
        shares = (replace_prob, replace_prob + random_prob, 1.0)
        return cls(*(round(chosen_prob * share * (1 << 32)) for share in shares))


class Settings(NamedTuple):
    """Arguments of ``mask_cells`` that are no tensors, checked, with thresholds in the place of probabilities."""

    n_genes: int
    seed: int
    step: int
    at_value: Thresholds
    at_zero: Thresholds
    read_depth_aware: bool
    mask_token_id: float


def not_whole_numbers() -> ValueError:
    """The error of counts that cannot be thinned."""
    return ValueError(
        "mask_cells was asked to thin counts that are not whole numbers from 0 to 2^31 - 1: give raw counts, or "
        "read_depth_aware=False."
    )


Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def new_results(
    counts: Tensor, cells: int, tokens: int | torch.SymInt, chosen: int | torch.SymInt
) -> Columns:
    """The tensors of ``MaskedCells``, in order, on the device of ``counts``; ``cu_seqlens`` is zero."""

    def new(size: int | torch.SymInt, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device=counts.device)

    return (
        new(tokens, torch.float32),
        new(tokens, torch.int64),
        torch.zeros(cells + 1, dtype=torch.int32, device=counts.device),
        new(chosen, torch.int64),
        new(chosen, torch.int64),
        new(chosen, torch.float32),
        new(chosen, torch.float32),
    )


def results_of_unknown_size(counts: Tensor, cells: int) -> tuple[*Columns, torch.SymInt]:
    """The tensors of ``MaskedCells`` and ``max_seqlen`` while torch traces an op that makes them."""
    context = torch.library.get_ctx()
    tokens, chosen, max_seqlen = (context.new_dynamic_size() for _ in range(3))
    return *new_results(counts, cells, tokens, chosen), max_seqlen
