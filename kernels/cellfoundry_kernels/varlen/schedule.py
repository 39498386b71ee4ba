"""Which tile of which cell a program takes: the longest cells first, so that nobody waits for one at the end.

The work of a tile grows with its cell's length. Programs start in order, so with the long cells first the
short ones fill the gaps of the last wave. The schedule is made on the device, in one small launch and without
a host sync: the number of tiles is not known on the host, but bounded by tokens and cells.

Shape legend: C cells, O the other cells that each one is compared with.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cellfoundry_kernels.launch import Launch, LaunchOptions, argument_types

BLOCK_C = 64
OPTIONS: LaunchOptions = {"num_warps": 4, "num_stages": 1}


@triton.jit
def schedule_kernel(
    cu_seqlens_ptr, schedule_ptr, cells, bound, ROWS: tl.constexpr, BLOCK_C: tl.constexpr
) -> None:
    """A cell's tiles stand behind those of all longer cells (of equal ones, behind those of the earlier)."""
    cell_C = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first_C = tl.load(cu_seqlens_ptr + cell_C, mask=cell_C < cells, other=0)
    length_C = (tl.load(cu_seqlens_ptr + cell_C + 1, mask=cell_C < cells, other=0) - first_C).to(tl.int32)
    place_C = tl.zeros([BLOCK_C], tl.int32)
    all_tiles = 0
    for start in range(0, cells, BLOCK_C):
        cell_O = start + tl.arange(0, BLOCK_C)
        first_O = tl.load(cu_seqlens_ptr + cell_O, mask=cell_O < cells, other=0)
        length_O = (tl.load(cu_seqlens_ptr + cell_O + 1, mask=cell_O < cells, other=0) - first_O).to(tl.int32)
        is_equal_CO = length_O[None, :] == length_C[:, None]
        is_before_CO = (length_O[None, :] > length_C[:, None]) | (
            is_equal_CO & (cell_O[None, :] < cell_C[:, None])
        )
        tiles_O = tl.cdiv(length_O, ROWS)
        place_C += tl.sum(tl.where(is_before_CO, tiles_O[None, :], 0), 1)
        all_tiles += tl.sum(tiles_O, 0)

    tiles_C = tl.cdiv(length_C, ROWS)
    for tile in range(0, tl.max(tiles_C, 0)):
        entry_C = (tl.zeros([BLOCK_C], tl.int64) + tile << 32) | cell_C
        tl.store(schedule_ptr + place_C + tile, entry_C, mask=tile < tiles_C)
    # Fewer entries than cells are left over, so each program's share of them is no more than its cells.
    left_C = all_tiles + cell_C
    tl.store(schedule_ptr + left_C, tl.full([BLOCK_C], -1, tl.int64), mask=left_C < bound)


@triton.jit
def take_tile(schedule_ptr, cu_seqlens_ptr, heads, ROWS: tl.constexpr):
    """First token (int64) and length of the cell whose tile this program takes, the tile's start, and the head.

    The heads of a tile lie side by side. A program without a tile gets a start beyond the length.
    """
    program = tl.program_id(0)
    entry = tl.load(schedule_ptr + program // heads)
    cell = (tl.maximum(entry, 0) & 0x7FFFFFFF).to(tl.int32)
    first = tl.load(cu_seqlens_ptr + cell).to(tl.int64)
    length = (tl.load(cu_seqlens_ptr + cell + 1) - first).to(tl.int32)
    start = (entry >> 32).to(tl.int32) * ROWS
    return first, tl.where(entry < 0, -ROWS, length), start, program % heads


def tile_bound(tokens: int, cells: int, rows: int) -> int:
    """The most tiles of ``rows`` tokens that so many cells can have, whatever their lengths."""
    return (tokens + cells * (rows - 1)) // rows


def make_schedule(cu_seqlens: Tensor, tokens: int, rows: int) -> Tensor:
    """Tile t as ``tile of the cell << 32 | cell``, int64 (tile_bound,); -1 beyond the last tile.

    Every cell is compared with every other: 10,000 cells are 157 programs of 157 steps.
    """
    cells = len(cu_seqlens) - 1
    bound = tile_bound(tokens, cells, rows)
    schedule = torch.empty(bound, dtype=torch.int64, device=cu_seqlens.device)
    grid = (triton.cdiv(cells, BLOCK_C),)
    schedule_kernel[grid](cu_seqlens, schedule, cells, bound, ROWS=rows, BLOCK_C=BLOCK_C, **OPTIONS)
    return schedule


def published_schedule(rows: int) -> Launch:
    """How the schedule of tiles of ``rows`` tokens is made."""
    constants = {"ROWS": rows, "BLOCK_C": BLOCK_C}
    other = {"cu_seqlens_ptr": "*i32", "schedule_ptr": "*i64"}
    types = argument_types(schedule_kernel, torch.float32, constants, other)
    return Launch("varlen_attention-schedule", schedule_kernel, types, constants, OPTIONS)
