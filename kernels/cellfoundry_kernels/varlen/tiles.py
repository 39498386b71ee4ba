"""Tile sizes of the attention kernels, by device and shape.

The entries come from what the kernels compile to (registers, shared memory, blocks a multiprocessor holds, no
spills), not from a clock. ``python -m cellfoundry_bench.tune_attention`` times candidates on a GPU and prints
the tables to put here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from cellfoundry_kernels.launch import LaunchOptions, has_large_tiles, tile

Kernel = Literal["forward", "keys", "queries"]


@dataclass(frozen=True)
class Tile:
    """Sizes of one launch.

    Attributes:
        rows: that a program owns: queries of the forward and of the dQ kernel, keys of the dK/dV kernel.
        columns: of the tiles that it walks over.
        warps: of a program.
        stages: of the pipeline that loads those tiles.
    """

    rows: int
    columns: int
    warps: int
    stages: int

    @property
    def options(self) -> LaunchOptions:
        """As the launch takes them."""
        return {"num_warps": self.warps, "num_stages": self.stages}


# Half precision: (compute capability, kernel) -> head dim, padded to a power of two -> tile. Shared memory of
# the entries for 80 stays under the 99 KiB of 86, 89, 120 and 121, which take them too.
HALF: dict[tuple[int, Kernel], dict[int, Tile]] = {
    (80, "forward"): {32: Tile(128, 64, 4, 3), 64: Tile(128, 64, 4, 3), 128: Tile(128, 32, 8, 3)},
    (80, "keys"): {32: Tile(64, 64, 4, 2), 64: Tile(128, 32, 8, 3), 128: Tile(64, 32, 8, 2)},
    (80, "queries"): {32: Tile(64, 64, 4, 2), 64: Tile(128, 32, 8, 3), 128: Tile(64, 32, 4, 3)},
    (90, "forward"): {32: Tile(128, 64, 8, 3), 64: Tile(128, 64, 8, 3), 128: Tile(128, 64, 8, 3)},
    (90, "keys"): {32: Tile(64, 64, 4, 3), 64: Tile(128, 64, 8, 3), 128: Tile(128, 32, 8, 3)},
    (90, "queries"): {32: Tile(128, 64, 8, 3), 64: Tile(128, 64, 8, 3), 128: Tile(128, 64, 8, 2)},
}
# A batch whose longest cell has 64 tokens (a targeted gene panel) would leave half of a longer tile empty.
SHORT = Tile(64, 32, 4, 3)
# Float32 products run on the plain cores; more of them than this in a tile spill registers.
SINGLE = {32: Tile(32, 32, 8, 2), 64: Tile(32, 32, 8, 2), 128: Tile(32, 16, 8, 2)}


def tile_for(kernel: Kernel, dtype: torch.dtype, head_dim: int, max_seqlen: int, capability: int) -> Tile:
    """The tile of a launch; ``capability`` as ``capability_of`` gives it.

    Newer devices take the newest entry, those with little shared memory the oldest.

    Raises:
        ValueError: A head wider than the tables have.
    """
    padded = max(32, tile(head_dim))
    if padded not in SINGLE:
        raise ValueError(
            f"varlen_attention got heads of {head_dim} channels, its kernels take up to {max(SINGLE)}: "
            "use more, narrower heads, or set CELLFOUNDRY_KERNELS=torch."
        )
    if dtype == torch.float32:
        return SINGLE[padded]
    if max_seqlen <= SHORT.rows and padded <= 64:
        return SHORT
    return HALF[90 if has_large_tiles(capability) else 80, kernel][padded]
