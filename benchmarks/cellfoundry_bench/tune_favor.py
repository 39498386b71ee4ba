"""Search FAVOR+'s tile sizes by what they compile to, and print candidates for ``cellfoundry_kernels.favor.tiles``.

    python -m cellfoundry_bench.tune_favor KERNEL --head-dim 64 --capability 90

needs triton, no GPU, and a second or more a candidate. Those that spill or do not fit are left out; of the others the
ones whose blocks keep the most positions of a multiprocessor in flight come first. Compile with every triton that is
to be supported (the top of ``tests/kernels/test_triton_compile.py`` says how) and choose what is in all the lists.
No clock has judged them.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import get_args

import torch

from cellfoundry_bench.compiled import SHARED_KIB, Resources, compile_launch
from cellfoundry_kernels.favor.published import KERNELS, launch_with
from cellfoundry_kernels.favor.tiles import Kernel, Tile, tile_for

# Features of the presets' decoders by head dim.
FEATURES = {16: 44, 32: 110, 64: 266}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
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


def search(
    kernel: Kernel, head_dim: int, dtype: torch.dtype, capability: int, tiles: Iterable[Tile]
) -> list[tuple[Tile, Resources]]:
    """The tiles that compile without spills and fit, the most positions in flight first."""
    found = []
    for tile in tiles:
        launch = launch_with(tile, kernel, FEATURES[head_dim], head_dim, dtype, capability)
        used = compile_launch(launch, capability)
        fits = used.shared_bytes <= SHARED_KIB[capability][0] * 1024 and used.blocks >= 1
        if fits and not used.stack_bytes:
            found.append((tile, used))
    return sorted(found, key=lambda pair: (pair[0].positions * pair[1].blocks, pair[1].warps), reverse=True)


def _counted(tiles: list[Tile]) -> Iterator[Tile]:
    """The tiles, each told as it is taken."""
    for number, tile in enumerate(tiles, start=1):
        print(f"{number}/{len(tiles)}: {tile}", file=sys.stderr, flush=True)
        yield tile


def main(arguments: list[str] | None = None) -> None:
    """Print what was found, the tile that is in use marked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernel", choices=get_args(Kernel))
    parser.add_argument("--head-dim", type=int, choices=FEATURES, default=64)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--capability", type=int, choices=(80, 90), default=90)
    asked = parser.parse_args(arguments)
    dtype = DTYPES[asked.dtype]
    used_now = tile_for(asked.kernel, dtype, asked.capability, asked.head_dim)
    tiles = _counted(candidates(asked.kernel, dtype))
    for tile, used in search(asked.kernel, asked.head_dim, dtype, asked.capability, tiles):
        mark = "  <- in use" if tile == used_now else ""
        print(
            f"{tile}  # {used.registers} registers, {used.shared_bytes / 1024:.0f} KiB, {used.blocks} blocks{mark}",
            flush=True,
        )


if __name__ == "__main__":
    main()
