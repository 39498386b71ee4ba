"""Pieces of the FAVOR+ kernels: rows, feature blocks, operands of the tensor cores, single columns.

Features are cut into ``FULL`` blocks of ``BLOCK_M`` and a tail of ``TAIL_M``, held as a tuple of tiles: 266 features
are 4 x 64 + 16 or 2 x 128 + 16, where one power of two would be 512.

Shape legend: kernel tiles: N positions, M features of a block, K head dim. A name without a suffix for M holds a
tuple of tiles, one a block.
"""

# Arguments of a kernel have no Python type, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(ptr, start, row_N, stride, BLOCK_K: tl.constexpr, CHANNELS: tl.constexpr):
    """Rows ``start + row_N`` as (N, K), zeros past the head dim."""
    column_K = tl.arange(0, BLOCK_K)
    rows = ptr + tl.cast(start, tl.int64) * stride + (row_N[:, None] * stride + column_K[None, :])
    if BLOCK_K == CHANNELS:
        return tl.load(rows)
    return tl.load(rows, mask=(column_K < CHANNELS)[None, :], other=0.0)


@triton.jit
def store_rows(
    ptr, rows_NK, start, row_N, is_row_N, stride, BLOCK_K: tl.constexpr, CHANNELS: tl.constexpr
) -> None:
    """The counterpart of ``load_rows``, for the rows of ``is_row_N``."""
    column_K = tl.arange(0, BLOCK_K)
    rows = ptr + tl.cast(start, tl.int64) * stride + (row_N[:, None] * stride + column_K[None, :])
    tl.store(rows, rows_NK.to(ptr.dtype.element_ty), mask=is_row_N[:, None] & (column_K < CHANNELS)[None, :])


@triton.jit
def load_column(ptr, BLOCK_K: tl.constexpr, CHANNELS: tl.constexpr):
    """One number a channel, zeros past the head dim."""
    column_K = tl.arange(0, BLOCK_K)
    return tl.load(ptr + column_K, mask=column_K < CHANNELS, other=0.0)


@triton.jit
def block_features(block, FULL: tl.constexpr, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr):
    """Feature numbers of one block; ``block`` is a constant, unless all blocks have one size."""
    if BLOCK_M == TAIL_M:
        feature_M = block * BLOCK_M + tl.arange(0, BLOCK_M)
    else:
        size: tl.constexpr = BLOCK_M if block < FULL else TAIL_M
        feature_M = block * BLOCK_M + tl.arange(0, size)
    return feature_M


@triton.jit
def load_features(ptr, feature_M, FEATURES: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr):
    """A (M, K) tile of a (features, channels) matrix, zeros past its end."""
    column_K = tl.arange(0, BLOCK_K)
    mask_MK = (feature_M < FEATURES)[:, None] & (column_K < CHANNELS)[None, :]
    return tl.load(ptr + (feature_M[:, None] * CHANNELS + column_K[None, :]), mask=mask_MK, other=0.0)


@triton.jit
def load_block(
    ptr, block, FEATURES: tl.constexpr, FULL: tl.constexpr, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One block of such a matrix."""
    feature_M = block_features(block, FULL, BLOCK_M, TAIL_M)
    return load_features(ptr, feature_M, FEATURES, CHANNELS, BLOCK_K)


@triton.jit
def load_full_blocks(
    ptr, FEATURES: tl.constexpr, FULL: tl.constexpr, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As ``load_blocks``, without the tail."""
    tiles = ()
    for block in tl.static_range(FULL):
        tiles += (load_block(ptr, block, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K),)
    return tiles


@triton.jit
def load_blocks(
    ptr, FEATURES: tl.constexpr, FULL: tl.constexpr, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A (features, channels) matrix as a tuple of tiles."""
    tiles = ()
    for block in tl.static_range(FULL + 1):
        tiles += (load_block(ptr, block, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K),)
    return tiles


# One number a row or column beside a matrix product (a sum, an offset): with tensor cores it is a product with 16
# columns, the narrowest there is, which costs less than the instructions that it replaces. With float32 ("ieee")
# it is what it says.


@triton.jit
def as_columns(column_N, like, PRECISION: tl.constexpr):
    """A column (N,) as an operand: (N, 16), eight times the column as rounded and eight times what that left."""
    if PRECISION != "ieee":
        rounded_N = column_N.to(like.dtype)
        rest_N = (column_N - rounded_N.to(tl.float32)).to(like.dtype)
        is_rest_X = tl.arange(0, 16) >= 8
        column_N = tl.where(is_rest_X[None, :], rest_N[:, None], rounded_N[:, None])
    return column_N


@triton.jit
def zero_sums(ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """Nothing summed yet, for ``add_products``."""
    sums = tl.zeros([ROWS], tl.float32)
    if PRECISION != "ieee":
        sums = tl.zeros([ROWS, 16], tl.float32)
    return sums


@triton.jit
def add_products(sums, rows_MN, columns, PRECISION: tl.constexpr):
    """Adds the products of rows (M, N) with a column of ``as_columns``."""
    if PRECISION == "ieee":
        sums += tl.sum(rows_MN * columns[None, :], 1)
    else:
        sums = tl.dot(rows_MN, columns, sums)
    return sums


@triton.jit
def add_weighted(sums_MK, column, weight_MN, rows_NK, columns):
    """Adds weighted sums of rows, and the products of the weights with a column of ``as_columns``.

    bfloat16 alone would round the weights by 2^-9: what that left is added too, which makes it 2^-17.
    """
    rounded_MN = weight_MN.to(rows_NK.dtype)
    rest_MN = (weight_MN - rounded_MN.to(tl.float32)).to(rows_NK.dtype)
    sums_MK = tl.dot(rest_MN, rows_NK, tl.dot(rounded_MN, rows_NK, sums_MK))
    column = tl.dot(rest_MN, columns, tl.dot(rounded_MN, columns, column))
    return sums_MK, column


@triton.jit
def add_weighted_columns(sums_KM, weight_NM, rows_NK, PRECISION: tl.constexpr):
    """``add_weighted`` of rows alone, as (K, M)."""
    rounded_NM = weight_NM.to(rows_NK.dtype)
    sums_KM = tl.dot(tl.trans(rows_NK), rounded_NM, sums_KM, input_precision=PRECISION)
    if PRECISION != "ieee":
        rest_NM = (weight_NM - rounded_NM.to(tl.float32)).to(rows_NK.dtype)
        sums_KM = tl.dot(tl.trans(rows_NK), rest_NM, sums_KM, input_precision=PRECISION)
    return sums_KM


@triton.jit
def sums_as_column(sums, PRECISION: tl.constexpr):
    """The sums of ``add_products`` as (M,)."""
    if PRECISION != "ieee":
        sums = tl.sum(sums, 1) * 0.125
    return sums


@triton.jit
def add_outer(x_NM, rows_N, columns, PRECISION: tl.constexpr):
    """Adds the outer product of rows, powers of two, with a column of ``as_columns``."""
    if PRECISION == "ieee":
        x_NM += rows_N[:, None] * columns[None, :]
    else:
        rows_NX = tl.broadcast_to((rows_N * 0.125)[:, None], [rows_N.shape[0], 16]).to(columns.dtype)
        x_NM = tl.dot(rows_NX, tl.trans(columns), x_NM)
    return x_NM


@triton.jit
def load_block_columns(
    ptr, factor, like, FEATURES: tl.constexpr, FULL: tl.constexpr, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One number a feature times ``factor``, as a tuple of ``as_columns``."""
    tiles = ()
    for block in tl.static_range(FULL + 1):
        feature_M = block_features(block, FULL, BLOCK_M, TAIL_M)
        column_M = tl.load(ptr + feature_M, mask=feature_M < FEATURES, other=0.0) * factor
        tiles += (as_columns(column_M, like, PRECISION),)
    return tiles


@triton.jit
def zero_blocks(FULL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """A tuple of (BLOCK_M, K) tiles of zeros; the tail has none."""
    tiles = ()
    for _block in tl.static_range(FULL):
        tiles += (tl.zeros([BLOCK_M, BLOCK_K], tl.float32),)
    return tiles


@triton.jit
def zero_block_sums(FULL: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr):
    """A tuple of ``zero_sums``; the tail has none."""
    tiles = ()
    for _block in tl.static_range(FULL):
        tiles += (zero_sums(BLOCK_M, PRECISION),)
    return tiles


@triton.jit
def as_operand(rows_NK, like):
    """Rows as an operand beside ``like``: bf16 becomes fp16, which keeps its every bit; fp16 may become float32.

    Past fp16's range rows are clamped: a query or key as long as that has exponentials of zero anyway. NaN stays.
    """
    if rows_NK.dtype == tl.bfloat16:
        rows_NK = rows_NK.to(tl.float32)
        rows_NK = tl.minimum(rows_NK, 65504.0, propagate_nan=tl.PropagateNan.ALL)
        rows_NK = tl.maximum(rows_NK, -65504.0, propagate_nan=tl.PropagateNan.ALL)
    return rows_NK.to(like.dtype)


# What rounding the projection to float16 left of it, its rests, is multiplied too, which makes it 22 bits: exponents
# of 10 and more would else miss by a thousandth, and gradients by a few times that. Float32 has no rests.


@triton.jit
def load_rests(
    ptr, FEATURES: tl.constexpr, FULL: tl.constexpr, BLOCK_M: tl.constexpr, TAIL_M: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr, HOLDS_RESTS: tl.constexpr,
):  # fmt: skip
    """The rests as ``load_blocks``, or nothing where ``rest_of`` loads them again for every tile of positions."""
    tiles = ()
    if HOLDS_RESTS:
        tiles = load_blocks(ptr, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K)
    return tiles


@triton.jit
def rest_of(
    tiles, ptr, block: tl.constexpr, FEATURES: tl.constexpr, FULL: tl.constexpr, BLOCK_M: tl.constexpr,
    TAIL_M: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr, HOLDS_RESTS: tl.constexpr,
):  # fmt: skip
    """The rests (M, K) of one block."""
    if HOLDS_RESTS:
        rest_MK = tiles[block]
    else:
        rest_MK = load_block(ptr, block, FEATURES, FULL, BLOCK_M, TAIL_M, CHANNELS, BLOCK_K)
    return rest_MK


@triton.jit
def exact_products(rows_NK, tile_MK, rest_MK, PRECISION: tl.constexpr):
    """Products (N, M) of rows with features and their rests."""
    logits_NM = tl.dot(rows_NK, tl.trans(tile_MK), input_precision=PRECISION)
    if PRECISION != "ieee":
        logits_NM = tl.dot(rows_NK, tl.trans(rest_MK), logits_NM)
    return logits_NM


@triton.jit
def as_summand(rows_NK):
    """Rows whose weighted sum is wanted, as an operand: bf16 stays, for its range, all else is float32."""
    if rows_NK.dtype != tl.bfloat16:
        rows_NK = rows_NK.to(tl.float32)
    return rows_NK


@triton.jit
def half_norm(rows_NK, half):
    """``half |row|^2``, (N,) float32."""
    rows_NK = rows_NK.to(tl.float32)
    return tl.sum(rows_NK * rows_NK, 1) * half


@triton.jit
def power_of_two(x):
    """The largest power of two up to each x, 1 for 0: dividing by it loses no bit."""
    power = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.where(power > 0, power, 1.0)
