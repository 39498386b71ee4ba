"""The search for FAVOR+'s tiles keeps what the compiler can do, in the order it promises."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="triton exists on Linux only")

import torch

from cellfoundry_bench.tune_favor import candidates, search
from cellfoundry_kernels.favor.tiles import Kernel, Tile, tile_for


def test_tiles_that_spill_are_left_out_and_the_widest_come_first() -> None:
    in_use = tile_for("queries", torch.bfloat16, 90, 16)
    narrow, spilling = Tile(16, 64, 4, 2, hoists=False), Tile(512, 64, 4, 2, hoists=False)
    found = search("queries", 16, torch.bfloat16, 90, [narrow, spilling, in_use])
    assert [tile for tile, _ in found] == [in_use, narrow]
    assert all(used.stack_bytes == 0 and used.blocks >= 1 for _, used in found)


@pytest.mark.parametrize(
    "kernel", ["key_sums", "queries", "backward_queries", "gradient_sums", "backward_keys"]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_tile_in_use_is_among_the_candidates(kernel: Kernel, dtype: torch.dtype) -> None:
    tiles = candidates(kernel, dtype)
    for capability in (80, 90):
        for head_dim in (16, 32, 64):
            assert tile_for(kernel, dtype, capability, head_dim) in tiles
