"""Forward kernels of FAVOR+ over keys: their sums, and the context that those make.

``E = exp2(a - n - s)``, with ``a`` the scaled product of a row and a feature, ``n`` half the row's squared norm,
``s`` the stabiliser; all in units of log 2. Keys are read once: their stabiliser, the maximum over the cell, is found
while ``exp2(a - n)`` is summed, and the sums are scaled by ``exp2(-s)`` when splits are added up. That is exact,
because epsilon does not enter those sums: ``sum (E + eps) V = sum E V + eps sum V``. It cannot overflow, because
``a - n`` is at most half a feature's squared norm; a running maximum would cost two instructions in six.

The context of feature m is ``B_m`` (its mass, ``sum E + eps P``) and ``C_m`` (its mean value, less the mean
``o`` over features), which ``forward_queries`` reads.

Shape legend: see ``blocks``.
"""

# Arguments of a kernel have no Python type, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from cellfoundry_kernels.favor.blocks import (
    add_weighted,
    add_weighted_columns,
    as_columns,
    as_operand,
    as_summand,
    exact_products,
    half_norm,
    load_block,
    load_features,
    load_full_blocks,
    load_rows,
    power_of_two,
    zero_block_sums,
    zero_blocks,
)
from cellfoundry_kernels.favor.splits import add_splits, store_sums, take_split


@triton.jit
def _exponent_shift(
    projection_ptr, FEATURES: tl.constexpr, PADDED_M: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """What keeps every ``a - n`` below 86: that is at most half a feature's squared norm, ``|P|^2 / 2``.

    It is 0, or a few for the longest features of a head of 64. What then underflows is far below epsilon's weight.
    """
    longest = 0.0
    for block in tl.range(0, PADDED_M // 16):
        tile_MK = load_block(projection_ptr, block, FEATURES, 0, 16, 16, CHANNELS, BLOCK_K).to(tl.float32)
        longest = tl.maximum(longest, tl.max(tl.sum(tile_MK * tile_MK, 1), 0))
    return tl.maximum(longest * (0.5 * 1.4426950408889634) - 86.0, 0.0)


@triton.jit
def key_sums_kernel(
    k_ptr,
    v_ptr,
    weight_ptr,
    projection_ptr,
    rest_ptr,
    sums_ptr,
    masses_ptr,
    tops_ptr,
    scale,
    half,
    k_cell,
    k_head,
    k_row,
    v_cell,
    v_head,
    v_row,
    heads,
    positions,
    split_positions,
    cell_splits,
    FEATURES: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TAIL_M: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PADDED_M: tl.constexpr,
    PRECISION: tl.constexpr,
    DISABLE_LICM: tl.constexpr,
) -> None:
    """Sums of one split of one head's keys, ``sum w E V`` and ``sum w E`` by feature, and the largest product.

    In float32 a program has one block of the features, the tail, instead of all.
    """
    _, cell, head, first, last = take_split(heads, positions, split_positions, cell_splits)
    k_ptr += cell * k_cell + head * k_head
    v_ptr += cell * v_cell + head * v_head
    projection = load_full_blocks(projection_ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K)
    rests = load_full_blocks(rest_ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K)
    feature_M = FULL * BLOCK_M + tl.program_id(1) * TAIL_M + tl.arange(0, TAIL_M)
    tail_MK = load_features(projection_ptr, feature_M, FEATURES, CHANNELS, BLOCK_K)
    rest_MK = load_features(rest_ptr, feature_M, FEATURES, CHANNELS, BLOCK_K)
    sums = zero_blocks(FULL, BLOCK_M, BLOCK_K)
    masses = zero_block_sums(FULL, BLOCK_M, PRECISION)
    top_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    # The tail is too short for the rows of a tensor core product: it lies along the columns. Behind the last feature
    # comes the constant one, whose sums are those of the values and the weights.
    is_constant_M = feature_M == FEATURES
    sum_KM = tl.zeros([BLOCK_K, TAIL_M], tl.float32)
    mass_NM = tl.zeros([BLOCK_N, TAIL_M], tl.float32)
    top_NM = tl.full([BLOCK_N, TAIL_M], float("-inf"), tl.float32)
    shift = _exponent_shift(projection_ptr, FEATURES, PADDED_M, CHANNELS, BLOCK_K)

    for start in tl.range(first, last, BLOCK_N, disable_licm=DISABLE_LICM):
        # Past the end the last key is read again, with a weight of zero: no maximum sees it.
        row_N = tl.minimum(tl.arange(0, BLOCK_N), last - 1 - start)
        is_key_N = start + tl.arange(0, BLOCK_N) < last
        weight_N = tl.where(is_key_N, 1.0, 0.0)
        k_NK = load_rows(k_ptr, start, row_N, k_row, BLOCK_K, CHANNELS)
        v_NK = load_rows(v_ptr, start, row_N, v_row, BLOCK_K, CHANNELS)
        shift_N = half_norm(k_NK, half) + shift
        if weight_ptr is not None:
            weight_N *= tl.load(weight_ptr + cell * positions + start + row_N)
            shift_N -= tl.math.log2(tl.maximum(weight_N, 1e-30))
            is_key_N &= weight_N > 0
        shift_N = tl.where(is_key_N, shift_N, float("inf"))
        k_NK, v_NK = as_operand(k_NK, tail_MK), as_summand(v_NK)
        ones = as_columns(tl.full([BLOCK_N], 1.0, tl.float32), v_NK, PRECISION)
        new_sums, new_masses = (), ()
        for block in tl.static_range(FULL):
            logits_MN = tl.dot(projection[block], tl.trans(k_NK))
            logits_MN = tl.dot(rests[block], tl.trans(k_NK), logits_MN)
            top_M = tl.maximum(top_M, tl.max(logits_MN, 1))
            exponential_MN = tl.math.exp2(logits_MN * scale - shift_N[None, :])
            sum_MK, mass = add_weighted(sums[block], masses[block], exponential_MN, v_NK, ones)
            new_sums += (sum_MK,)
            new_masses += (mass,)
        sums, masses = new_sums, new_masses
        logits_NM = exact_products(k_NK, tail_MK, rest_MK, PRECISION)
        top_NM = tl.maximum(top_NM, logits_NM)
        exponential_NM = tl.math.exp2(logits_NM * scale - shift_N[:, None])
        exponential_NM = tl.where(is_constant_M[None, :], weight_N[:, None], exponential_NM)
        sum_KM = add_weighted_columns(sum_KM, exponential_NM, v_NK, PRECISION)
        mass_NM += exponential_NM

    store_sums(
        sums_ptr, masses_ptr, sums, masses, sum_KM, mass_NM, feature_M, FULL, BLOCK_M, PADDED_M, CHANNELS, BLOCK_K,
        PRECISION,
    )  # fmt: skip
    top = tl.max(tl.where(feature_M < FEATURES, tl.max(top_NM, 0), float("-inf")), 0)
    top = tl.maximum(top, tl.max(top_M, 0))
    tops_ptr += 2 * (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1))
    tl.store(tops_ptr, top * scale)
    tl.store(tops_ptr + 1, shift)


@triton.jit
def context_kernel(
    sums_ptr,
    masses_ptr,
    tops_ptr,
    context_ptr,
    log_mass_ptr,
    columns_ptr,
    scalars_ptr,
    epsilon,
    heads,
    cell_splits,
    parts,
    FEATURES: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """A head's splits become its context, some columns a program, in the order of the splits.

    ``context`` is C over a power of two a column; ``log_mass`` is log2 B, less its maximum; ``columns`` are the
    mean ``o`` and those powers; ``scalars`` are epsilon's share, the maximum of log2 B, the stabiliser, and the
    log2 of the largest share of any feature's mass that keys have, not epsilon: no key's share is more.
    """
    group = tl.program_id(0).to(tl.int64)
    feature_M = tl.arange(0, BLOCK_M)
    column_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_feature_M, is_column_D = feature_M < FEATURES, column_D < CHANNELS
    is_value_MD = is_feature_M[:, None] & is_column_D[None, :]

    stabilizer = tl.full([], float("-inf"), tl.float32)
    cell_programs = heads * cell_splits * parts
    first_top_ptr = tops_ptr + group // heads * cell_programs * 2
    for start in range(0, cell_programs, 256):
        other = start + tl.arange(0, 256)
        top = tl.load(first_top_ptr + 2 * other, mask=other < cell_programs, other=float("-inf"))
        stabilizer = tl.maximum(stabilizer, tl.max(top, 0))

    sum_MD, sum_mass_M, value_D, weight = add_splits(
        sums_ptr, masses_ptr, group, cell_splits, feature_M, column_D, FEATURES, CHANNELS, PADDED_M
    )
    rescale = tl.math.exp2(tl.load(tops_ptr + 1) - stabilizer)
    key_mass_M = sum_mass_M * rescale
    mass_M = tl.where(is_feature_M, key_mass_M + epsilon * weight, 0.0)
    # Values relative to their plain mean, where epsilon's are zero: what is left may be a millionth of the values.
    value_D /= weight
    sum_MD = tl.where(is_value_MD, (sum_MD - sum_mass_M[:, None] * value_D[None, :]) * rescale, 0.0)
    shift_D = tl.sum(sum_MD, 0) / tl.sum(mass_M, 0)
    mean_D = value_D + shift_D
    context_MD = tl.where(is_value_MD, sum_MD / tl.maximum(mass_M, 1e-30)[:, None] - shift_D[None, :], 0.0)
    scale_D = power_of_two(tl.max(tl.abs(context_MD), 0))
    context_MD = context_MD / scale_D[None, :]
    offset_MD = feature_M[:, None] * CHANNELS + column_D[None, :]
    context_ptr += group * FEATURES * CHANNELS
    tl.store(context_ptr + offset_MD, context_MD.to(context_ptr.dtype.element_ty), mask=is_value_MD)
    tl.store(columns_ptr + group * 2 * CHANNELS + column_D, mean_D, mask=is_column_D)
    tl.store(columns_ptr + group * 2 * CHANNELS + CHANNELS + column_D, scale_D, mask=is_column_D)
    if tl.program_id(1) == 0:
        largest = tl.max(mass_M, 0)
        log_mass_M = tl.math.log2(tl.where(is_feature_M, mass_M, largest) / largest)
        tl.store(log_mass_ptr + group * FEATURES + feature_M, log_mass_M, mask=is_feature_M)
        tl.store(scalars_ptr + group * 4, epsilon * tl.sum(mass_M, 0) / largest)
        tl.store(scalars_ptr + group * 4 + 1, tl.math.log2(largest))
        tl.store(scalars_ptr + group * 4 + 2, stabilizer)
        share = tl.max(tl.where(is_feature_M, key_mass_M / tl.maximum(mass_M, 1e-30), 0.0), 0)
        tl.store(scalars_ptr + group * 4 + 3, tl.math.log2(tl.maximum(share, 1e-30)))
