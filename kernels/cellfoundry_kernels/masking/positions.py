"""Kernels over all gene positions of a batch: which are chosen, what they show, and where results go.

A program takes ``BLOCK_G`` positions of one cell. Both kernels draw the same words, so nothing of size cells x genes
is stored between them: the first one counts, the second one writes.

Shape legend: C cells, S blocks of positions of a cell, N encoder tokens, X chosen positions; kernel tiles:
G positions.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from cellfoundry_kernels.masking import definition
from cellfoundry_kernels.masking.search import count_up_to, word_of_each

_CHOICE = tl.constexpr(definition.CHOICE)
_DRAW = tl.constexpr(definition.DRAW)
SCALARS = [
    "seed",
    "step",
    "value_masked",
    "value_random",
    "value_chosen",
    "zero_masked",
    "zero_random",
    "zero_chosen",
]


@triton.jit
def _decide(
    gene_ptr,
    value_ptr,
    position_G,
    word_G,
    entries,
    expressed,
    value_masked,
    value_random,
    value_chosen,
    zero_masked,
    zero_random,
    zero_chosen,
    n_genes,
    STEPS: tl.constexpr,
):
    """Stored entry (-1: none) and input value (-1: not expressed) of each position, and what becomes of it."""
    is_position_G = position_G < n_genes
    entry_G = count_up_to(gene_ptr, entries, position_G, STEPS) - 1
    gene_G = tl.load(gene_ptr + entry_G, mask=entry_G >= 0, other=-1)
    entry_G = tl.where(is_position_G & (gene_G == position_G), entry_G, -1)
    value_G = tl.load(value_ptr + entry_G, mask=entry_G >= 0, other=-1.0)
    is_expressed_G = value_G != -1.0
    is_chosen_G = is_position_G & (word_G < tl.where(is_expressed_G, value_chosen, zero_chosen))
    is_masked_G = is_chosen_G & (word_G < tl.where(is_expressed_G, value_masked, zero_masked))
    is_random_G = is_chosen_G & (word_G < tl.where(is_expressed_G, value_random, zero_random)) & ~is_masked_G
    # A comparison of tensors: the interpreter of triton 3.9 takes no mask that a scalar one is part of.
    has_values_G = expressed > tl.zeros_like(position_G)
    is_token_G = (is_expressed_G | (is_random_G & has_values_G)) & ~is_masked_G
    return entry_G, value_G, is_chosen_G, is_masked_G, is_random_G, is_token_G


@triton.jit(do_not_specialize=SCALARS)
def count_kernel(
    indptr_ptr,
    gene_ptr,
    cell_id_ptr,
    value_ptr,
    expressed_ptr,
    chosen_ptr,
    tokens_ptr,
    seed,
    step,
    value_masked,
    value_random,
    value_chosen,
    zero_masked,
    zero_random,
    zero_chosen,
    n_genes,
    blocks,
    STEPS: tl.constexpr,
    BLOCK_G: tl.constexpr,
) -> None:
    """Chosen positions and encoder tokens of each block; T and S belong to a cell's last one."""
    cell = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    first = tl.load(indptr_ptr + cell)
    entries = (tl.load(indptr_ptr + cell + 1) - first).to(tl.int32)
    position_G = block * BLOCK_G + tl.arange(0, BLOCK_G)
    word_G = word_of_each(seed, step, _CHOICE, tl.load(cell_id_ptr + cell), block * BLOCK_G, BLOCK_G)
    _entry_G, _value_G, is_chosen_G, _is_masked_G, _is_random_G, is_token_G = _decide(
        gene_ptr + first,
        value_ptr + first,
        position_G,
        word_G,
        entries,
        tl.load(expressed_ptr + cell),
        value_masked,
        value_random,
        value_chosen,
        zero_masked,
        zero_random,
        zero_chosen,
        n_genes,
        STEPS,
    )
    tokens = tl.sum(is_token_G.to(tl.int32)) + tl.where(block == blocks - 1, 2, 0)
    tl.store(chosen_ptr + tl.program_id(0), tl.sum(is_chosen_G.to(tl.int32)))
    tl.store(tokens_ptr + tl.program_id(0), tokens)


@triton.jit(do_not_specialize=SCALARS)
def write_kernel(
    indptr_ptr,
    gene_ptr,
    cell_id_ptr,
    value_ptr,
    expressed_ptr,
    target_ptr,
    expressed_value_ptr,
    depth_ptr,
    chosen_end_ptr,
    tokens_end_ptr,
    token_value_ptr,
    token_position_ptr,
    mask_cell_ptr,
    mask_position_ptr,
    mask_value_ptr,
    mask_target_ptr,
    mask_token_id,
    seed,
    step,
    value_masked,
    value_random,
    value_chosen,
    zero_masked,
    zero_random,
    zero_chosen,
    n_genes,
    blocks,
    STEPS: tl.constexpr,
    BLOCK_G: tl.constexpr,
) -> None:
    """The results of each block, which end where the counts summed up to this block say."""
    cell = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    first = tl.load(indptr_ptr + cell)
    entries = (tl.load(indptr_ptr + cell + 1) - first).to(tl.int32)
    cell_id = tl.load(cell_id_ptr + cell)
    expressed = tl.load(expressed_ptr + cell)
    position_G = block * BLOCK_G + tl.arange(0, BLOCK_G)
    word_G = word_of_each(seed, step, _CHOICE, cell_id, block * BLOCK_G, BLOCK_G)
    entry_G, value_G, is_chosen_G, is_masked_G, is_random_G, is_token_G = _decide(
        gene_ptr + first,
        value_ptr + first,
        position_G,
        word_G,
        entries,
        expressed,
        value_masked,
        value_random,
        value_chosen,
        zero_masked,
        zero_random,
        zero_chosen,
        n_genes,
        STEPS,
    )
    draw_G = word_of_each(seed, step, _DRAW, cell_id, block * BLOCK_G, BLOCK_G)
    drawn_ptr = expressed_value_ptr + first + ((draw_G * expressed) >> 32)
    drawn_G = tl.load(drawn_ptr, mask=is_random_G & (expressed > tl.zeros_like(position_G)), other=0.0)
    kept_G = tl.where(is_random_G, drawn_G, tl.where(value_G != -1.0, value_G, 0.0))
    shown_G = tl.where(is_masked_G, mask_token_id, kept_G)
    target_G = tl.load(target_ptr + first + entry_G, mask=is_chosen_G & (entry_G >= 0), other=0.0)

    one_G = is_chosen_G.to(tl.int32)
    slot_G = tl.load(chosen_end_ptr + tl.program_id(0)) - tl.sum(one_G) + tl.cumsum(one_G, 0) - 1
    tl.store(mask_cell_ptr + slot_G, tl.zeros_like(slot_G) + cell, mask=is_chosen_G)
    tl.store(mask_position_ptr + slot_G, position_G.to(tl.int64), mask=is_chosen_G)
    tl.store(mask_value_ptr + slot_G, shown_G, mask=is_chosen_G)
    tl.store(mask_target_ptr + slot_G, target_G, mask=is_chosen_G)

    is_last = block == blocks - 1
    end = tl.load(tokens_end_ptr + tl.program_id(0)) - tl.where(is_last, 2, 0)
    one_G = is_token_G.to(tl.int32)
    slot_G = end - tl.sum(one_G) + tl.cumsum(one_G, 0) - 1
    tl.store(token_value_ptr + slot_G, kept_G, mask=is_token_G)
    tl.store(token_position_ptr + slot_G, position_G.to(tl.int64), mask=is_token_G)
    depth_2 = tl.arange(0, 2)
    is_depth_2 = depth_2 >= tl.where(is_last, 0, 2)
    tl.store(token_value_ptr + end + depth_2, tl.load(depth_ptr + 2 * cell + depth_2), mask=is_depth_2)
    tl.store(token_position_ptr + end + depth_2, (n_genes + depth_2).to(tl.int64), mask=is_depth_2)
