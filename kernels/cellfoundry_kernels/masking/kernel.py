"""Masking on the GPU: five launches and one wait for the device.

1. totals of each cell, its thinning threshold, and whether its counts can be thinned (program a cell);
2. thinning (program a few entries, over the whole batch, so that a deep cell is spread over many programs);
3. normalised values, and the expressed ones again in order of rank (program a cell);
4. counts of chosen positions and tokens (program 1,024 positions of a cell); their running sums over the batch say
   where each program's results begin;
5. the results themselves, with the random words of 4. drawn again.

The sizes of the results, the longest cell and the check of the counts come to the host in one copy between 4. and 5.

A program of 4. and of 5. runs straight through about 900 and 1,550 instructions a warp as compiled for sm_90, most of
them the search of a position among its cell's entries; 256 cells x 19,264 genes are 4,864 programs of 8 warps, so 95 M
instructions: 0.1 ms of an H100 that issues one a cycle on each of its 528 schedulers. Thinning takes a Philox call of
about 100 instructions for each 4 molecules of a gene. Memory traffic is some 60 bytes a stored entry and 40 a result,
under 100 MB.

Shape legend: N encoder tokens, C cells, Z stored entries, X chosen positions, S blocks of positions,
cell after cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from cellfoundry_kernels.launch import Launch, LaunchOptions, argument_types, registered_op
from cellfoundry_kernels.masking.definition import (
    MaskedCells,
    Settings,
    new_results,
    not_whole_numbers,
    results_of_unknown_size,
)
from cellfoundry_kernels.masking.entries import normalise_kernel, thin_kernel, totals_kernel
from cellfoundry_kernels.masking.positions import count_kernel, write_kernel

BLOCK_CELL = 512  # entries of a cell at a time; twice as many spill registers on A100 (triton 3.9)
THIN_TILES = {"BLOCK_E": 32, "BLOCK_B": 8}
BLOCK_POSITIONS = 1024
OPTIONS: LaunchOptions = {"num_warps": 8, "num_stages": 2}


@dataclass(frozen=True)
class _Batch:
    """The columns of a batch, contiguous, with what is known of its entries and cells.

    Attributes:
        value_Z: float32, normalised input; -1 where thinning left nothing.
        target_Z: float32, normalised raw count.
        expressed_value_Z: float32, those of ``value_Z`` that are not -1, in order from a cell's first entry on.
        expressed_C: int32, how many those are.
        depth_C2: float32, T and S.
        unusable_C: int32, 1 where counts that were to be thinned are none.
    """

    indptr: Tensor
    gene_ids: Tensor
    counts: Tensor
    cell_ids: Tensor
    value_Z: Tensor
    target_Z: Tensor
    expressed_value_Z: Tensor
    expressed_C: Tensor
    depth_C2: Tensor
    unusable_C: Tensor

    @classmethod
    def of(
        cls,
        indptr: Tensor,
        gene_ids: Tensor,
        counts: Tensor,
        cell_ids: Tensor,
        words: tuple[int, int],
        thins: bool,
    ) -> _Batch:
        """Launches 1. to 3.; ``words`` are seed and step."""
        entries, cells = len(counts), len(cell_ids)
        raw_total_C = counts.new_empty(cells, dtype=torch.float64)
        threshold_C = torch.empty_like(raw_total_C, dtype=torch.int64)
        unusable_C = torch.zeros_like(raw_total_C, dtype=torch.int32)
        totals_kernel[(cells,)](
            *(indptr, counts, cell_ids, raw_total_C, threshold_C, unusable_C),
            *words,
            THINS=thins,
            BLOCK_E=BLOCK_CELL,
            **OPTIONS,
        )
        input_Z = counts
        if thins and entries:
            input_Z = torch.empty_like(counts, dtype=torch.float64)
            thin_kernel[(triton.cdiv(entries, THIN_TILES["BLOCK_E"]),)](
                *(indptr, gene_ids, counts, cell_ids, threshold_C, input_Z),
                *(*words, entries, cells),
                STEPS=(cells + 1).bit_length(),
                **THIN_TILES,
                **OPTIONS,
            )
        value_Z = torch.empty_like(counts, dtype=torch.float32)
        target_Z, expressed_value_Z = torch.empty_like(value_Z), torch.empty_like(value_Z)
        expressed_C = torch.empty_like(unusable_C)
        depth_C2 = counts.new_empty(cells, 2, dtype=torch.float32)
        results = (target_Z, value_Z, expressed_value_Z, expressed_C, depth_C2)
        normalise_kernel[(cells,)](
            *(indptr, counts, input_Z, raw_total_C), *results, BLOCK_E=BLOCK_CELL, **OPTIONS
        )
        return cls(
            *(indptr, gene_ids, counts, cell_ids, value_Z, target_Z, expressed_value_Z),
            *(expressed_C, depth_C2, unusable_C),
        )


@registered_op("mask_cells")
def _mask_cells(
    indptr: Tensor,
    gene_ids: Tensor,
    counts: Tensor,
    cell_ids: Tensor,
    n_genes: int,
    seed: int,
    step: int,
    thresholds: list[int],
    thins: bool,
    mask_token_id: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    """Columns of ``MaskedCells``, ``max_seqlen`` last; thresholds are those of values, then those of zeros."""
    cells = len(cell_ids)
    if cells == 0:
        return (*new_results(counts, 0, 0, 0), 0)
    words = (_in_int32(seed), _in_int32(step))
    batch = _Batch.of(
        indptr.contiguous(), gene_ids.contiguous(), counts.contiguous(), cell_ids.contiguous(), words, thins
    )

    blocks = max(triton.cdiv(n_genes, BLOCK_POSITIONS), 1)
    looked_up = (batch.indptr, batch.gene_ids, batch.cell_ids, batch.value_Z, batch.expressed_C)
    scalars = (*words, *thresholds, n_genes, blocks)
    tiles = position_tiles(n_genes)
    chosen_S = torch.empty(cells * blocks, dtype=torch.int32, device=counts.device)
    tokens_S = torch.empty_like(chosen_S)
    count_kernel[(cells * blocks,)](*looked_up, chosen_S, tokens_S, *scalars, **tiles, **OPTIONS)
    chosen_end_S, tokens_end_S = chosen_S.cumsum(0), tokens_S.cumsum(0)
    tokens_end_C = tokens_end_S[blocks - 1 :: blocks]
    length_C = tokens_end_C.diff(prepend=tokens_end_C.new_zeros(1))
    # The one wait for the device.
    sizes = (chosen_end_S[-1], tokens_end_S[-1], length_C.max(), batch.unusable_C.max())
    chosen, tokens, max_seqlen, unusable = torch.stack(sizes).tolist()
    if unusable:
        raise not_whole_numbers()

    value_N, position_N, cu_seqlens, *columns_X = new_results(counts, cells, tokens, chosen)
    cu_seqlens[1:] = tokens_end_C
    write_kernel[(cells * blocks,)](
        *looked_up,
        *(batch.target_Z, batch.expressed_value_Z, batch.depth_C2),
        *(chosen_end_S, tokens_end_S),
        *(value_N, position_N, *columns_X),
        mask_token_id,
        *scalars,
        **tiles,
        **OPTIONS,
    )
    return (value_N, position_N, cu_seqlens, *columns_X, max_seqlen)


@_mask_cells.register_fake
def _(indptr, gene_ids, counts, cell_ids, *settings):  # type: ignore[no-untyped-def]
    return results_of_unknown_size(counts, len(cell_ids))


def _in_int32(word: int) -> int:
    """The int32 with the bits of a 32-bit word: one type of argument, so one compiled kernel, for all words."""
    return word - (1 << 32) if word >= 1 << 31 else word


def position_tiles(n_genes: int) -> dict[str, int]:
    """Constants of the kernels over positions."""
    return {"STEPS": n_genes.bit_length(), "BLOCK_G": BLOCK_POSITIONS}


def mask_cells(
    indptr: Tensor, gene_ids: Tensor, counts: Tensor, cell_ids: Tensor, settings: Settings
) -> MaskedCells:
    """As ``cellfoundry_kernels.masking``."""
    n_genes, seed, step, at_value, at_zero, read_depth_aware, mask_token_id = settings
    thresholds = [*at_value, *at_zero]
    value_N, position_N, cu_seqlens, *columns_X, max_seqlen = _mask_cells(
        *(indptr, gene_ids, counts, cell_ids.long(), n_genes, seed, step, thresholds),
        *(read_depth_aware, mask_token_id),
    )
    return MaskedCells(value_N, position_N, cu_seqlens, max_seqlen, *columns_X)


def published_launches() -> list[Launch]:
    """What runs at 19,264 genes and 256 cells."""
    types = {
        "indptr_ptr": "*i64",
        "gene_ptr": "*i32",
        "cell_id_ptr": "*i64",
        "raw_total_ptr": "*fp64",
        "threshold_ptr": "*i64",
        "unusable_ptr": "*i32",
        "input_ptr": "*fp64",
        "expressed_ptr": "*i32",
        "chosen_ptr": "*i32",
        "tokens_ptr": "*i32",
        "chosen_end_ptr": "*i64",
        "tokens_end_ptr": "*i64",
        "token_position_ptr": "*i64",
        "mask_cell_ptr": "*i64",
        "mask_position_ptr": "*i64",
        "mask_token_id": "fp32",
    }
    constants: dict[str, dict[str, Any]] = {
        "totals": {"THINS": True, "BLOCK_E": BLOCK_CELL},
        "thin": {"STEPS": (256 + 1).bit_length(), **THIN_TILES},
        "normalise": {"BLOCK_E": BLOCK_CELL},
        "count": position_tiles(19_264),
        "write": position_tiles(19_264),
    }
    kernels = (totals_kernel, thin_kernel, normalise_kernel, count_kernel, write_kernel)
    return [
        Launch(
            f"mask_cells-{kernel.fn.__name__}-genes19264",
            kernel,
            argument_types(kernel, torch.float32, constants[name], types),
            constants[name],
            OPTIONS,
            ("n_genes",),
        )
        for name, kernel in zip(constants, kernels, strict=True)
    ]
