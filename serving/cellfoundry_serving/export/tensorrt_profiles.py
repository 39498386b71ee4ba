"""Optimisation profiles of TensorRT plans: the sizes of batches that each one takes.

A padded batch is cells x tokens of the longest, so its buckets are by length. A packed one is the tokens of its cells,
one after another, so two do: for the small batches that requests bring, and for full ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layout = Literal["packed", "padded"]
LAYOUTS: tuple[Layout, ...] = ("packed", "padded")
Shape = tuple[int, ...]

SHORTEST = 3  # T, S and a gene
# Tokens and cells. Padded: tokens of the longest cell, about 32,768 a batch; the last bucket is for bulk samples.
PADDED_BUCKETS = ((512, 64), (2048, 16), (8192, 4), (32_768, 1))
# Packed: tokens of all cells.
PACKED_BUCKETS = ((4096, 128), (32_768, 128))


@dataclass(frozen=True)
class Profile:
    """The batches that one optimisation profile takes.

    Attributes:
        layout: "packed" or "padded".
        max_tokens: of the longest cell where padded, of all cells where packed.
        max_cells: cells.
    """

    layout: Layout
    max_tokens: int
    max_cells: int

    def shapes(self) -> dict[str, tuple[Shape, ...]]:
        """Smallest, usual and largest shape of each input, by its name."""
        cells = (1, max(1, self.max_cells // 2), self.max_cells)
        tokens = (SHORTEST, max(SHORTEST, self.max_tokens * 3 // 4), self.max_tokens)
        if self.layout == "packed":
            flat = tuple((count,) for count in tokens)
            return {"value": flat, "position": flat, "cu_seqlens": tuple((count + 1,) for count in cells)}
        batch = tuple(zip(cells, tokens, strict=True))
        return {"value": batch, "position": batch, "length": tuple((count,) for count in cells)}


def profiles_for(layout: Layout, n_positions: int) -> list[Profile]:
    """The buckets for cells over ``n_positions`` positions, ascending; the last takes every cell."""
    if layout == "packed":
        small, full = PACKED_BUCKETS
        return [Profile(layout, *small), Profile(layout, max(full[0], n_positions), full[1])]
    shorter = [Profile(layout, tokens, cells) for tokens, cells in PADDED_BUCKETS if tokens < n_positions]
    cells = next(cells for tokens, cells in (*PADDED_BUCKETS, (n_positions, 1)) if tokens >= n_positions)
    return [*shorter, Profile(layout, n_positions, cells)]


def pick_profile(profiles: list[Profile], tokens: int) -> int:
    """Index of the first profile that takes a batch of ``tokens`` tokens (see ``Profile.max_tokens``)."""
    return next(index for index, profile in enumerate(profiles) if tokens <= profile.max_tokens)
