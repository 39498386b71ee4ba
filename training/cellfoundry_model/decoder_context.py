"""A random sample of the positions that are zero and not masked, for training with a decoder that sees those alone.

FAVOR+ meets the positions of a cell in two sums only (of keys, and of keys with values). A sampled position that stands
for w others counts w times in both, so that each sum is an unbiased estimate of that over all positions (Horvitz and
Thompson 1952), given the rows that enter the layer and the stabiliser of the keys, which scales them alike but for
FAVOR+'s epsilon of 1e-4.

The Z free positions of a cell (no encoder token, not chosen) are cut into n = ceil(rate Z) strata of equal size and one
is drawn in each: all cells sample the same share whatever their length, and the weights Z / n add up to Z exactly.
Where Z / n is no whole number, a position on the border of two strata may be drawn by both; it is then expected as
often as any other.

Legend: C cells, E positions that the decoder computes anyway, over all cells, S sampled positions over all cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cellfoundry_kernels import MaskedCells
from cellfoundry_kernels.masking.definition import CONTEXT
from cellfoundry_kernels.philox import philox4x32
from cellfoundry_model.cell_rows import cell_of_token

# Bits of a random word that place a draw in its stratum: with 24, ranks of up to 2^19 positions fit int64.
FRACTION_BITS = 24


@dataclass(frozen=True)
class DecoderContext:
    """Sampled zero positions.

    Attributes:
        cell_index_S: int64, cell of each; ascending.
        position_S: int64, its position, ascending in a cell.
        weight_S: float32, how many positions it stands for.
    """

    cell_index_S: Tensor
    position_S: Tensor
    weight_S: Tensor


def draw_context(
    masked: MaskedCells, cell_ids: Tensor, *, n_genes: int, rate: float, seed: int, step: int
) -> DecoderContext:
    """Sample a share ``rate`` (0 to 1) of each cell's free positions, at least one where there is any.

    A cell's sample depends on (seed, step, its id, its masked self) alone, through the same counter-based generator as
    its mask. With a rate of 1 it is every free position, with weight 1. Waits for the device.
    """
    cells, n_positions = len(cell_ids), n_genes + 2  # T and S are the last two
    position_E, cell_E = _entered(masked, n_positions)
    entered_C = cell_E.new_zeros(cells).index_add_(0, cell_E, torch.ones_like(cell_E))
    free_C = n_positions - entered_C
    drawn_C = (free_C.double() * rate).ceil().long()
    drawn = drawn_C.tolist()
    cell_S = torch.arange(cells, device=drawn_C.device).repeat_interleave(drawn_C, output_size=sum(drawn))
    stratum_S = torch.arange(len(cell_S), device=cell_S.device) - (drawn_C.cumsum(0) - drawn_C)[cell_S]
    fraction_S = _fractions(drawn, cell_ids, seed, step).to(cell_S.device)
    exact_S = ((stratum_S << FRACTION_BITS) + fraction_S) * free_C[cell_S] // drawn_C[cell_S]
    rank_S = exact_S >> FRACTION_BITS

    # The rank-th free position: as many entered ones lie before it as have no more than rank free ones before them.
    first_C = entered_C.cumsum(0) - entered_C
    free_before_E = position_E - (torch.arange(len(cell_E), device=cell_E.device) - first_C[cell_E])
    stride = n_positions + 1
    before_S = torch.searchsorted(cell_E * stride + free_before_E, cell_S * stride + rank_S, right=True)
    position_S = rank_S + before_S - first_C[cell_S]
    return DecoderContext(cell_S, position_S, (free_C / drawn_C).float()[cell_S])


def _entered(masked: MaskedCells, n_positions: int) -> tuple[Tensor, Tensor]:
    """Positions of encoder tokens and chosen ones, each once, and their cells; cells and positions ascend."""
    cell_N = cell_of_token(masked.cu_seqlens, len(masked.position_N))
    token_N = cell_N * n_positions + masked.position_N
    chosen_X = masked.mask_cell_index_X * n_positions + masked.mask_position_X
    place_E = torch.cat([token_N, chosen_X]).unique()
    return place_E % n_positions, place_E // n_positions


def _fractions(drawn: list[int], cell_ids: Tensor, seed: int, step: int) -> Tensor:
    """Where in its stratum each draw falls, in units of 2^-24, int64 (S,): word ``i % 4`` of index ``i // 4``."""
    ids_C = cell_ids.cpu().numpy()
    calls = -(-max(drawn, default=0) // 4)
    low_C1, high_C1 = (
        half.astype(np.uint64)[:, None] for half in (ids_C & 0xFFFFFFFF, ids_C >> 32 & 0xFFFFFFFF)
    )
    counter = (
        np.arange(calls, dtype=np.uint64)[None],
        np.full((1, 1), CONTEXT, dtype=np.uint64),
        low_C1,
        high_C1,
    )
    words = philox4x32(counter, (seed, step)).reshape(len(ids_C), 4 * calls)
    own = np.arange(4 * calls) < np.array(drawn, dtype=np.int64)[:, None]
    return torch.from_numpy(words[own].astype(np.int64) >> (32 - FRACTION_BITS))
