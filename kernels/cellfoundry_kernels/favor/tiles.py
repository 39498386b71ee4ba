"""Sizes of the FAVOR+ launches: tiles by device, feature blocks, and how positions are split among programs.

The tiles come from what the kernels compile to (registers, shared memory, no spills), not from a clock;
``python -m cellfoundry_bench.tune_favor`` times candidates on a GPU and prints the tables to put here.

Shape legend: C cells, H heads, P positions, K head dim, M features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from cellfoundry_kernels.launch import (
    SMALL_SHARED_MEMORY,
    LaunchOptions,
    capability_of,
    dot_precision,
    tile,
)

LOG2_E = math.log2(math.e)
Kernel = Literal["key_sums", "queries", "backward_queries", "gradient_sums", "backward_keys"]


@dataclass(frozen=True)
class Tile:
    """Sizes of one launch.

    Attributes:
        positions: of a tile.
        features: of a full block.
        warps: of a program.
        stages: of the pipeline that loads positions.
        hoists: whether the compiler may move work out of the loop over positions. On H100 it would move the
            descriptors of some 70 tensor core operands, two registers each, and spill others; on A100 it must move
            the operands, or triton 3.9 spills up to 1.7 KB.
        holds_rests: whether the projection's rests (see ``blocks``) stay in shared memory. At heads of 64 they do not
            fit A100's (174 KiB of 163); on H100 loading them for every tile spills.
    """

    positions: int
    features: int
    warps: int
    stages: int
    hoists: bool = True
    holds_rests: bool = True

    @property
    def options(self) -> LaunchOptions:
        """As the launch takes them."""
        return {"num_warps": self.warps, "num_stages": self.stages}


# bfloat16, by compute capability and padded head dim.
BFLOAT16: dict[tuple[int, Kernel], dict[int, Tile]] = {
    (80, "key_sums"): {16: Tile(32, 64, 4, 2), 32: Tile(32, 64, 4, 2), 64: Tile(16, 128, 8, 1)},
    (80, "queries"): {16: Tile(64, 64, 4, 2), 32: Tile(64, 64, 4, 2), 64: Tile(128, 64, 8, 2)},
    (80, "backward_queries"): {
        16: Tile(64, 64, 4, 1),
        32: Tile(64, 64, 4, 1),
        64: Tile(32, 64, 4, 1, holds_rests=False),
    },
    (80, "gradient_sums"): {16: Tile(32, 64, 4, 2), 32: Tile(32, 64, 4, 2), 64: Tile(16, 128, 8, 2)},
    (80, "backward_keys"): {
        16: Tile(64, 64, 4, 1),
        32: Tile(32, 32, 4, 1),
        64: Tile(32, 64, 8, 1, holds_rests=False),
    },
    (90, "key_sums"): {
        16: Tile(64, 64, 4, 2, hoists=False),
        32: Tile(32, 64, 4, 2, hoists=False),
        64: Tile(32, 128, 8, 2, hoists=False),
    },
    (90, "queries"): dict.fromkeys((16, 32, 64), Tile(64, 64, 4, 2, hoists=False)),
    (90, "backward_queries"): {
        16: Tile(64, 64, 4, 1, hoists=False),
        32: Tile(64, 64, 4, 1, hoists=False),
        64: Tile(128, 64, 8, 1, hoists=False),
    },
    (90, "gradient_sums"): {
        16: Tile(64, 64, 4, 2, hoists=False),
        32: Tile(64, 64, 4, 2, hoists=False),
        64: Tile(64, 128, 8, 2, hoists=False),
    },
    (90, "backward_keys"): {
        16: Tile(64, 64, 4, 1, hoists=False),
        32: Tile(64, 64, 4, 1, hoists=False),
        64: Tile(64, 32, 8, 1, hoists=False),
    },
}
# Float32, which float16 inputs take too, runs on the plain cores. They hold rows of both operands of a product in
# registers, so all but dQ walk over blocks of features in a loop instead of keeping all in shared memory.
SINGLE: dict[Kernel, dict[int, Tile]] = {
    "key_sums": dict.fromkeys((16, 32, 64), Tile(32, 32, 8, 1)),
    "queries": {16: Tile(32, 64, 8, 1), 32: Tile(32, 64, 8, 1), 64: Tile(32, 16, 8, 1)},
    "backward_queries": {
        16: Tile(16, 64, 8, 1, hoists=False),
        32: Tile(16, 16, 8, 1),
        64: Tile(16, 64, 8, 1),
    },
    "gradient_sums": dict.fromkeys((16, 32, 64), Tile(32, 32, 8, 1)),
    "backward_keys": {16: Tile(16, 16, 8, 1), 32: Tile(32, 16, 8, 1), 64: Tile(32, 16, 8, 1)},
}
# Programs of a launch: about four rounds of two programs on each of 132 multiprocessors.
PROGRAMS = 1024
# Fewer positions than this are not worth a program of their own: it loads up to 140 KB of operands first.
LEAST_POSITIONS = 512
# Features x head dim, both padded, whose operands fit the 163 KiB of shared memory of an A100.
LARGEST_PROJECTION = 272 * 64
# Wider heads spill registers: at 128 channels 16 to 56 bytes in bfloat16.
LARGEST_HEAD = 64


def tile_for(kernel: Kernel, dtype: torch.dtype, capability: int, head_dim: int) -> Tile:
    """The tile of a launch; newer devices take the newest entry."""
    entries = BFLOAT16[90 if capability >= 90 else 80, kernel] if dtype == torch.bfloat16 else SINGLE[kernel]
    return entries[tile(head_dim)]


# A constant of a traced graph, as in dispatch.
@torch.compiler.assume_constant_result
def runs(features: int, head_dim: int, device: torch.device) -> bool:
    """Whether the kernels run a projection of this size on this device; else the reference does."""
    small = padded_features(features, 16) * tile(head_dim) <= LARGEST_PROJECTION
    capability = capability_of(device)
    return small and head_dim <= LARGEST_HEAD and capability >= 80 and capability not in SMALL_SHARED_MEMORY


def feature_blocks(features: int, block_m: int) -> dict[str, int]:
    """The blocks of a number of features as ``constexpr`` arguments; the tail has room for one feature more."""
    full = features // block_m
    return {"FULL": full, "BLOCK_M": block_m, "TAIL_M": tile(features - full * block_m + 1)}


def padded_features(features: int, block_m: int) -> int:
    """Features of all blocks."""
    blocks = feature_blocks(features, block_m)
    return blocks["FULL"] * block_m + blocks["TAIL_M"]


def sums_parts(features: int, dtype: torch.dtype, sizes: Tile) -> int:
    """Programs that share the features of one split of the sums: in float32 one a block.

    All sums in one program spill 8 to 40 bytes on H100 with triton 3.9.
    """
    if operand_dtype(dtype) != torch.float32:
        return 1
    return triton.cdiv(features + 1, sizes.features)


def sums_features(features: int, dtype: torch.dtype, sizes: Tile) -> int:
    """Features in the sums of one split, with the constant one behind the last."""
    if operand_dtype(dtype) != torch.float32:
        return padded_features(features, sizes.features)
    return sums_parts(features, dtype, sizes) * sizes.features


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of matrix operands made inside: what is rounded must be finer than the inputs.

    float16 for bfloat16 inputs: shares in [0, 1] and rows over a power of two need its bits, not bfloat16's range.
    """
    return torch.float16 if dtype == torch.bfloat16 else torch.float32


def constants(features: int, head_dim: int, dtype: torch.dtype, sizes: Tile) -> dict[str, Any]:
    """``constexpr`` arguments of every kernel over positions."""
    return {
        "FEATURES": features,
        **feature_blocks(features, sizes.features),
        "CHANNELS": head_dim,
        "BLOCK_K": tile(head_dim),
        "BLOCK_N": sizes.positions,
        "PRECISION": dot_precision(operand_dtype(dtype)),
        "DISABLE_LICM": not sizes.hoists,
    }


def sums_constants(features: int, head_dim: int, dtype: torch.dtype, sizes: Tile) -> dict[str, Any]:
    """``constexpr`` arguments of the kernels that sum over positions."""
    chosen = constants(features, head_dim, dtype, sizes)
    if operand_dtype(dtype) == torch.float32:  # a program's block is its tail
        chosen |= {"FULL": 0, "TAIL_M": sizes.features}
    return chosen | {"PADDED_M": sums_features(features, dtype, sizes)}


# Of the kernels that add up splits, some columns a program.
REDUCE_COLUMNS = 16


def reduce_options(features: int) -> LaunchOptions:
    """Options of those kernels: a warp for 64 features."""
    return {"num_warps": min(max(triton.next_power_of_2(features) // 64, 1), 8), "num_stages": 2}


def reduce_constants(features: int, head_dim: int, dtype: torch.dtype, sizes: Tile) -> dict[str, Any]:
    """``constexpr`` arguments of the kernels that add up splits of ``sums`` launches."""
    return {
        "FEATURES": features,
        "CHANNELS": head_dim,
        "PADDED_M": sums_features(features, dtype, sizes),
        "BLOCK_M": triton.next_power_of_2(features),
        "BLOCK_D": REDUCE_COLUMNS,
    }


def splits(groups: int, positions: int, sizes: Tile) -> tuple[int, int]:
    """Into how many programs each (cell, head) is split, and the positions of each: a multiple of the tile.

    Enough to fill the processor with one cell; with many cells few, so that partial sums (70 KB each at 266
    features) stay below about 75 MB, or one a (cell, head).
    """
    wanted = max(1, min(PROGRAMS // max(groups, 1), positions // LEAST_POSITIONS))
    length = triton.cdiv(triton.cdiv(positions, wanted), sizes.positions) * sizes.positions
    return triton.cdiv(positions, length), length


TileOf = Callable[[Kernel, Tensor], Tile]


def sizes_of(kernel: Kernel, x_CHPK: Tensor) -> Tile:
    """The tile of a launch over these rows."""
    return tile_for(kernel, x_CHPK.dtype, capability_of(x_CHPK.device), x_CHPK.shape[3])


def row_strides(x_CHPK: Tensor) -> tuple[int, ...]:
    """Strides of cells, heads and positions."""
    return x_CHPK.stride()[:3]


def with_dense_rows(x_CHPK: Tensor) -> Tensor:
    """The tensor where each row lies dense, as in views of a packed projection; else a copy."""
    # 128 rows of a tile are addressed with 32 bits.
    is_dense = x_CHPK.stride(3) == 1 and x_CHPK.stride(2) < 2**24
    return x_CHPK if is_dense else x_CHPK.contiguous()


def empty_heads_inside(x_CHPK: Tensor) -> Tensor:
    """Memory shaped like ``x_CHPK``, a position's heads side by side: merging the heads again copies nothing."""
    cells, heads, positions, channels = x_CHPK.shape
    return x_CHPK.new_empty(cells, positions, heads, channels).transpose(1, 2)
