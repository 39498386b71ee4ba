"""Time the attention kernels' tiles on this GPU and print the tables of ``cellfoundry_kernels.varlen.tiles``.

``python -m cellfoundry_bench.tune_attention`` takes some minutes, most of them the compiler's. The batch is 64 cells of
real lengths, 12 heads; for ``SHORT``, which takes cells of up to 64 tokens, 4,096 cells of 16 to 64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cellfoundry_bench.kernels.inputs import packed_qkv
from cellfoundry_bench.kernels.timing import Work
from cellfoundry_bench.ragged import cu_seqlens_of, real_lengths
from cellfoundry_bench.tuning import Entry, Use, by_head_dim, fastest, print_table, tile_text
from cellfoundry_kernels.varlen.kernel import launch, launch_of
from cellfoundry_kernels.varlen.schedule import make_schedule
from cellfoundry_kernels.varlen.tiles import SHORT, Kernel, Tile

KERNELS: tuple[Kernel, ...] = get_args(Kernel)
HEAD_DIMS = (32, 64, 128)
HEADS = 12
HALF_CANDIDATES = [Tile(*sizes) for sizes in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))]
# What is a short cell follows from the rows.
SHORT_CANDIDATES = [tile for tile in HALF_CANDIDATES if tile.rows == SHORT.rows]
SINGLE_CANDIDATES = [Tile(*sizes) for sizes in itertools.product((16, 32, 64), (16, 32, 64), (4, 8), (1, 2))]


# Heads of 16 take float32's entry of 32.
SINGLE_HEADS = {32: (16, 32), 64: (64,), 128: (128,)}


@dataclass(frozen=True)
class Batch:
    """Cells of these lengths as the kernels' inputs, random, made when the first launch is timed."""

    lengths: npt.NDArray[np.int64]
    head_dim: int
    dtype: torch.dtype
    device: str = "cuda"
    heads: int = HEADS

    @cached_property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (N, H, K)."""
        return packed_qkv(int(self.lengths.sum()), self.heads, self.head_dim, self.dtype, self.device)

    @cached_property
    def other(self) -> dict[Kernel, tuple[Tensor, ...]]:
        """A kernel's other tensors."""
        grad, first, second = (torch.zeros_like(self.qkv[0]).contiguous() for _ in range(3))
        lse_HN, delta_HN = (torch.zeros(self.heads, len(grad), device=self.device) for _ in range(2))
        return {
            "forward": (first, lse_HN),
            "keys": (grad, first, second, lse_HN, delta_HN),
            "queries": (grad, first, lse_HN, delta_HN),
        }

    def work(self, kernel: Kernel, tile: Tile) -> Work:
        """One launch, its schedule made."""
        cu_seqlens, scale = cu_seqlens_of(self.lengths, self.device), self.head_dim**-0.5
        scales = (scale,) if kernel == "forward" else (scale, scale)
        order = make_schedule(cu_seqlens, len(self.qkv[0]), tile.rows)
        return lambda: launch(kernel, self.qkv, self.other[kernel], cu_seqlens, order, scales, tile)

    def use(self, kernel: Kernel) -> Use[Tile]:
        """A kernel on this batch."""
        return Use(partial(launch_of, kernel, self.dtype, self.head_dim), partial(self.work, kernel))


def _rows(tile: Tile) -> int:
    return tile.rows


def entries() -> Iterator[Entry[Tile]]:
    """Every entry that the tables have for one device, by the names that ``table_text`` knows."""
    real, half = real_lengths(64) + 2, torch.bfloat16
    for kernel, head_dim in itertools.product(KERNELS, HEAD_DIMS):
        yield Entry(f"{kernel} {head_dim}", HALF_CANDIDATES, _rows, [Batch(real, head_dim, half).use(kernel)])
    short = np.random.default_rng(0).integers(16, SHORT.rows + 1, 4096)
    uses = [Batch(short, head_dim, half).use(kernel) for kernel in KERNELS for head_dim in (32, 64)]
    yield Entry("short", SHORT_CANDIDATES, _rows, uses)
    for padded, head_dims in SINGLE_HEADS.items():
        batches = [Batch(real, head_dim, torch.float32) for head_dim in head_dims]
        uses = [batch.use(kernel) for kernel in KERNELS for batch in batches]
        yield Entry(f"single {padded}", SINGLE_CANDIDATES, _rows, uses)


def table_text(tiles: dict[str, Tile], capability: int) -> str:
    """The chosen tiles as ``varlen/tiles.py`` writes its tables; of HALF the rows of this device."""
    rows = [
        f'    ({capability}, "{kernel}"): {by_head_dim({k: tiles[f"{kernel} {k}"] for k in HEAD_DIMS})},'
        for kernel in KERNELS
    ]
    single = by_head_dim({head_dim: tiles[f"single {head_dim}"] for head_dim in HEAD_DIMS})
    return "\n".join([*rows, f"SHORT = {tile_text(tiles['short'])}", f"SINGLE = {single}"])


if __name__ == "__main__":
    print_table(lambda capability: table_text(fastest([*entries()], capability), capability))
