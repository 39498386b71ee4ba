"""Kernels over the stored entries of a batch: totals, thinning, normalised values.

Shape legend: C cells, Z stored entries; kernel tiles: E entries, B Philox calls.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from cellfoundry_kernels.masking import definition
from cellfoundry_kernels.masking.search import count_up_to, philox_words

_DEPTH = tl.constexpr(definition.DEPTH)
_THINNING = tl.constexpr(definition.THINNING)
_POSITION_SHIFT = tl.constexpr(definition.POSITION_SHIFT)
_MINIMUM_TOTAL = tl.constexpr(definition.THINNING_MINIMUM_TOTAL)
_COUNT_LIMIT = tl.constexpr(definition.THINNING_COUNT_LIMIT)
_NORMALIZED_TOTAL = tl.constexpr(definition.NORMALIZED_TOTAL)
# A cell whose threshold is this keeps every molecule, unread: it is not thinned.
_KEEPS_ALL = tl.constexpr(1 << 32)
_LOG10_E = tl.constexpr(0.4342944819032518)


@triton.jit(do_not_specialize=["seed", "step"])
def totals_kernel(
    indptr_ptr,
    counts_ptr,
    cell_id_ptr,
    raw_total_ptr,
    threshold_ptr,
    unusable_ptr,
    seed,
    step,
    THINS: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """Raw total of a cell, and where cells are thinned its threshold and whether its counts are no counts."""
    cell = tl.program_id(0).to(tl.int64)
    first = tl.load(indptr_ptr + cell)
    last = tl.load(indptr_ptr + cell + 1)
    total_E = tl.zeros([BLOCK_E], tl.float64)
    unusable_E = tl.zeros([BLOCK_E], tl.int32)
    for start in range(first, last, BLOCK_E):
        entry_E = start + tl.arange(0, BLOCK_E)
        count_E = tl.load(counts_ptr + entry_E, mask=entry_E < last, other=0.0).to(tl.float64)
        total_E += count_E
        is_usable_E = (count_E == tl.floor(count_E)) & (count_E >= 0) & (count_E < _COUNT_LIMIT)
        unusable_E = tl.where(is_usable_E, unusable_E, 1)
    total = tl.sum(total_E)
    tl.store(raw_total_ptr + cell, tl.where(total > 0, total, 1.0))
    if THINS:
        unusable = tl.max(unusable_E)
        zero = tl.full([], _DEPTH, tl.uint32)
        coin, word_1, word_2, word_3 = philox_words(seed, step, zero, tl.load(cell_id_ptr + cell), zero)
        lower, upper = tl.minimum(word_1, word_2), tl.maximum(word_1, word_2)
        median = tl.maximum(lower, tl.minimum(upper, word_3)).to(tl.int64)
        is_thinned = (coin.to(tl.int64) < (1 << 31)) & (total >= _MINIMUM_TOTAL) & (unusable == 0)
        tl.store(threshold_ptr + cell, tl.where(is_thinned, median, _KEEPS_ALL))
        tl.store(unusable_ptr + cell, unusable)


@triton.jit(do_not_specialize=["seed", "step", "entries", "cells"])
def thin_kernel(
    indptr_ptr,
    gene_ptr,
    counts_ptr,
    cell_id_ptr,
    threshold_ptr,
    input_ptr,
    seed,
    step,
    entries,
    cells,
    STEPS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_B: tl.constexpr,
) -> None:
    """Molecules that ``BLOCK_E`` entries keep, ``BLOCK_B`` x 4 of each at a time, until the largest is done."""
    entry_E = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    is_entry_E = entry_E < entries
    cell_E = count_up_to(indptr_ptr, cells + 1, entry_E, STEPS) - 1
    threshold_E = tl.load(threshold_ptr + cell_E, mask=is_entry_E, other=_KEEPS_ALL)
    cell_id_E = tl.load(cell_id_ptr + cell_E, mask=is_entry_E, other=0)
    gene_E = tl.load(gene_ptr + entry_E, mask=is_entry_E, other=0)
    raw_E = tl.load(counts_ptr + entry_E, mask=is_entry_E, other=0.0).to(tl.float64)
    is_thinned_E = threshold_E < _KEEPS_ALL
    count_E = tl.where(is_thinned_E, raw_E, 0.0).to(tl.int32)
    decision_E1 = ((gene_E << _POSITION_SHIFT) | _THINNING)[:, None]
    kept_EB = tl.zeros([BLOCK_E, BLOCK_B], tl.int32)
    most = tl.max(count_E)
    for start in range(0, tl.cdiv(most, 4), BLOCK_B):
        index_1B = (start + tl.arange(0, BLOCK_B))[None, :]
        words = philox_words(seed, step, decision_E1, cell_id_E[:, None], index_1B)
        for lane in tl.static_range(4):
            is_kept_EB = words[lane].to(tl.int64) < threshold_E[:, None]
            kept_EB += (is_kept_EB & (index_1B * 4 + lane < count_E[:, None])).to(tl.int32)
    input_E = tl.where(is_thinned_E, tl.sum(kept_EB, 1).to(tl.float64), raw_E)
    tl.store(input_ptr + entry_E, input_E, mask=is_entry_E)


@triton.jit
def _normalise(count, total):
    """log1p of counts per 1e4; the quotient repairs what rounding 1 + x loses (Goldberg 1991, theorem 4)."""
    x = count / total * _NORMALIZED_TOTAL
    y = 1.0 + x
    is_tiny = y == 1.0
    return tl.where(is_tiny, x, tl.log(y) * x / tl.where(is_tiny, 1.0, y - 1.0)).to(tl.float32)


@triton.jit
def normalise_kernel(
    indptr_ptr,
    counts_ptr,
    input_ptr,
    raw_total_ptr,
    target_ptr,
    value_ptr,
    expressed_value_ptr,
    expressed_ptr,
    depth_ptr,
    BLOCK_E: tl.constexpr,
) -> None:
    """Target and input value of each entry of a cell, and its T and S.

    ``value`` is -1 where no molecule was kept. ``expressed_value`` holds the others again, in order from the
    cell's first entry on, so that the value of a given rank is found at once.
    """
    cell = tl.program_id(0).to(tl.int64)
    first = tl.load(indptr_ptr + cell)
    last = tl.load(indptr_ptr + cell + 1)
    raw_total = tl.load(raw_total_ptr + cell)
    total_E = tl.zeros([BLOCK_E], tl.float64)
    for start in range(first, last, BLOCK_E):
        entry_E = start + tl.arange(0, BLOCK_E)
        total_E += tl.load(input_ptr + entry_E, mask=entry_E < last, other=0.0).to(tl.float64)
    total = tl.sum(total_E)
    total = tl.where(total > 0, total, 1.0)
    tl.store(depth_ptr + 2 * cell, (tl.log(raw_total) * _LOG10_E).to(tl.float32))
    tl.store(depth_ptr + 2 * cell + 1, (tl.log(total) * _LOG10_E).to(tl.float32))

    expressed = tl.zeros([], tl.int32)
    for start in range(first, last, BLOCK_E):
        entry_E = start + tl.arange(0, BLOCK_E)
        is_entry_E = entry_E < last
        raw_E = tl.load(counts_ptr + entry_E, mask=is_entry_E, other=0.0).to(tl.float64)
        input_E = tl.load(input_ptr + entry_E, mask=is_entry_E, other=0.0).to(tl.float64)
        tl.store(target_ptr + entry_E, _normalise(raw_E, raw_total), mask=is_entry_E)
        is_expressed_E = input_E > 0
        value_E = tl.where(is_expressed_E, _normalise(input_E, total), -1.0)
        tl.store(value_ptr + entry_E, value_E, mask=is_entry_E)
        rank_E = expressed + tl.cumsum(is_expressed_E.to(tl.int32), 0) - 1
        tl.store(expressed_value_ptr + first + rank_E, value_E, mask=is_expressed_E)
        expressed += tl.sum(is_expressed_E.to(tl.int32))
    tl.store(expressed_ptr + cell, expressed)
