"""Time FAVOR+'s tiles on this GPU and print the tables of ``cellfoundry_kernels.favor.tiles``.

``python -m cellfoundry_bench.tune_favor`` compiles some 2,000 candidates, a second or more each, on all processors.
What is timed is a whole pass, forward or backward, of 8 cells of 4,096 positions, in which one kernel's tile varies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import get_args

import torch
from torch import Tensor

from cellfoundry_bench.kernels.inputs import split_heads
from cellfoundry_bench.kernels.timing import Work
from cellfoundry_bench.tuning import Entry, Use, by_head_dim, fastest, print_table
from cellfoundry_kernels.favor.kernel import backward, forward
from cellfoundry_kernels.favor.published import KERNELS, launch_with
from cellfoundry_kernels.favor.tiles import Kernel, Tile, sizes_of

NAMES: tuple[Kernel, ...] = get_args(Kernel)
FORWARD: tuple[Kernel, ...] = ("key_sums", "queries")
# Features of the presets' decoders by head dim.
FEATURES = {16: 44, 32: 110, 64: 266}
DTYPES = {"bfloat16": torch.bfloat16, "single": torch.float32}
CANDIDATES = {
    # The tensor cores take 16 rows at least.
    torch.bfloat16: [
        Tile(positions, features, warps, stages, hoists=hoists, holds_rests=holds)
        for positions, features, warps, stages, hoists, holds in itertools.product(
            (16, 32, 64, 128), (32, 64, 128), (4, 8), (1, 2), (True, False), (True, False)
        )
    ],
    torch.float32: [
        Tile(positions, features, 8, 1, hoists=hoists)
        for positions, features, hoists in itertools.product((16, 32, 64), (16, 32, 64), (True, False))
    ],
}


def candidates(kernel: Kernel, dtype: torch.dtype) -> list[Tile]:
    """Sizes to try; a kernel without rests takes either choice about them alike."""
    has_rests = "HOLDS_RESTS" in KERNELS[kernel].arg_names
    return [tile for tile in CANDIDATES[dtype] if has_rests or tile.holds_rests]


@dataclass(frozen=True)
class Batch:
    """Inputs of both passes, random, made when the first pass is timed."""

    head_dim: int
    dtype: torch.dtype
    device: str = "cuda"
    cells: int = 8
    heads: int = 8
    positions: int = 4_096

    @cached_property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        """Queries, keys, values (C, H, P, K), the projection (M, K), and no weights."""
        shape = (self.cells, self.heads, self.positions, self.head_dim)
        q, k, v = (split_heads(*shape, self.dtype, self.device) for _ in "qkv")
        return q, k, v, torch.randn(FEATURES[self.head_dim], self.head_dim, device=self.device), None

    @cached_property
    def results(self) -> tuple[Tensor, ...]:
        """Of forward."""
        return forward(*self.inputs)

    def work(self, kernel: Kernel, tile: Tile) -> Work:
        """The pass that a kernel is part of, with this tile of it and those in use of the others."""

        def tile_of(name: Kernel, x_CHPK: Tensor) -> Tile:
            return tile if name == kernel else sizes_of(name, x_CHPK)

        if kernel in FORWARD:
            return lambda: forward(*self.inputs, tile_of)
        out_CHPK, *saved = self.results
        return lambda: backward(out_CHPK, *self.inputs, tuple(saved), tile_of)


def entries(capability: int) -> Iterator[Entry[Tile]]:
    """Every entry that the tables have for one device, by the names that ``table_text`` knows."""
    for (table, dtype), kernel, head_dim in itertools.product(DTYPES.items(), NAMES, FEATURES):
        launch = partial(
            launch_with,
            name=kernel,
            features=FEATURES[head_dim],
            head_dim=head_dim,
            dtype=dtype,
            capability=capability,
        )
        uses = [Use(launch, partial(Batch(head_dim, dtype).work, kernel))]
        yield Entry(f"{table} {kernel} {head_dim}", candidates(kernel, dtype), _positions, uses)


def _positions(tile: Tile) -> int:
    return tile.positions


def table_text(tiles: dict[str, Tile], capability: int) -> str:
    """The chosen tiles as rows of ``favor/tiles.py``'s tables: of BFLOAT16 this device's, then those of SINGLE."""

    def row(table: str, kernel: Kernel) -> str:
        return by_head_dim({head_dim: tiles[f"{table} {kernel} {head_dim}"] for head_dim in FEATURES})

    return "\n".join(
        [f'    ({capability}, "{kernel}"): {row("bfloat16", kernel)},' for kernel in NAMES]
        + [f'    "{kernel}": {row("single", kernel)},' for kernel in NAMES]
    )


if __name__ == "__main__":
    print_table(lambda capability: table_text(fastest([*entries(capability)], capability), capability))
