"""Tiles of rows of one head, in and out of memory. Offsets within a tile fit 32 bits; ``ptr`` carries the rest."""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(
    ptr, row, row_stride, rows_left, HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr, MASKED: tl.constexpr
):
    """The rows behind ``ptr`` as a (rows, BLOCK_K) tile; zeros beyond HEAD_DIM and, if masked, ``rows_left``."""
    column_K = tl.arange(0, BLOCK_K)
    pointers = ptr + row[:, None] * row_stride + column_K[None, :]
    if MASKED:
        mask = (row < rows_left)[:, None] & (column_K < HEAD_DIM)[None, :]
        rows = tl.load(pointers, mask=mask, other=0.0)
    elif HEAD_DIM != BLOCK_K:
        rows = tl.load(pointers, mask=(column_K < HEAD_DIM)[None, :], other=0.0)
    else:
        rows = tl.load(pointers)
    return rows


@triton.jit
def store_rows(ptr, rows, row, row_stride, rows_left, HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr) -> None:
    """The counterpart of ``load_rows``, masked."""
    column_K = tl.arange(0, BLOCK_K)
    pointers = ptr + row[:, None] * row_stride + column_K[None, :]
    mask = (row < rows_left)[:, None] & (column_K < HEAD_DIM)[None, :]
    tl.store(pointers, rows.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_numbers(ptr, row, rows_left, MASKED: tl.constexpr):
    """One float32 a row behind ``ptr``; if masked, zeros from ``rows_left`` on."""
    return tl.load(ptr + row, mask=row < rows_left, other=0.0) if MASKED else tl.load(ptr + row)
