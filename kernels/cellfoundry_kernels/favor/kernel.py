"""FAVOR+ on NVIDIA GPUs: the launches, registered with torch as one op and its backward.

Feature maps stay in registers, and the operands that every position meets (projection, its rests, context) in shared
memory; float32 reads them from the cache in most kernels.
Sums over positions are split among programs and added in a fixed order, so a result repeats bit for bit; the
number of splits follows the number of cells and heads.

Work at 266 features and heads of 64, in products of 2 M K FLOPs a row of bfloat16: keys 4 (of the rests of projection
and weights too, see ``blocks``), queries 2; backward 5 for dQ (the output again, see ``backward_queries``), 3 for the
sums, 5 for dK and dV, so 19 where 12 are needed. Feature blocks add 2 %, the 16 columns of sums and offsets 12 %
(keys), 5 % (dQ), 17 % (sums) and 10 % (dK, dV). Exponentials are M a row and kernel: 2 forward, 3 backward. At
H100's peak a row takes 17 cycles of its multiprocessor for the exponentials of a kernel, and 8 for each product.

Memory beside the inputs and results, C cells of H heads: partial sums, 70 KB a program of at most
max(1024, C H) (73 MB at C H <= 1024); context 34 KB a (cell, head); 12 bytes a query, 16 in backward. 64 cells of
19,266 positions and 8 heads: 0.3 GB, where one feature map in bfloat16 is 5.2 GB.

Shape legend: C cells, H heads, P key positions, Q query positions, K head dim, M features; X = 2 to 4 numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from cellfoundry_kernels.favor.backward_keys import backward_keys_kernel
from cellfoundry_kernels.favor.backward_queries import backward_queries_kernel
from cellfoundry_kernels.favor.backward_sums import gradient_context_kernel, gradient_sums_kernel
from cellfoundry_kernels.favor.forward_keys import context_kernel, key_sums_kernel
from cellfoundry_kernels.favor.forward_queries import queries_kernel
from cellfoundry_kernels.favor.published import published_launches
from cellfoundry_kernels.favor.reference import FAVOR_EPSILON
from cellfoundry_kernels.favor.tiles import (
    LOG2_E,
    REDUCE_COLUMNS,
    TileOf,
    constants,
    empty_heads_inside,
    operand_dtype,
    reduce_constants,
    reduce_options,
    row_strides,
    sizes_of,
    splits,
    sums_constants,
    sums_features,
    sums_parts,
    with_dense_rows,
)
from cellfoundry_kernels.launch import registered_op

__all__ = ["favor_attention", "published_launches"]


@registered_op("favor_attention")
def _forward(
    q_CHQK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor, projection_MK: Tensor, weight_CP: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output (C, H, Q, K) and what backward needs: rows of ``queries_kernel``, results of ``context_kernel``."""
    return forward(q_CHQK, k_CHPK, v_CHPK, projection_MK, weight_CP)


def forward(
    q_CHQK: Tensor,
    k_CHPK: Tensor,
    v_CHPK: Tensor,
    projection_MK: Tensor,
    weight_CP: Tensor | None,
    tile_of: TileOf = sizes_of,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the op, with tiles of the caller's choice."""
    results = _forward_like(q_CHQK, v_CHPK, projection_MK)
    out_CHQK, rows_CHQX, context_CHMK, log_mass_CHM, columns_CHXK, scalars_CHX = results
    cells, heads, queries, head_dim = q_CHQK.shape
    if not cells * heads * queries:
        return results
    q_CHQK, k_CHPK, v_CHPK = with_dense_rows(q_CHQK), with_dense_rows(k_CHPK), with_dense_rows(v_CHPK)
    rounded_MK, weight_CP = _prepared(projection_MK, weight_CP, context_CHMK.dtype)
    rest_MK = _rest_of(projection_MK, rounded_MK)
    features, positions, groups = len(projection_MK), k_CHPK.shape[2], cells * heads
    scales = _scales(head_dim)

    sizes = tile_of("key_sums", k_CHPK)
    cell_splits, split_positions = splits(groups, positions, sizes)
    programs, padded = groups * cell_splits, sums_features(features, k_CHPK.dtype, sizes)
    parts = sums_parts(features, k_CHPK.dtype, sizes)
    sums = scalars_CHX.new_empty(programs, padded, head_dim)
    masses, tops = sums.new_empty(programs, padded), sums.new_empty(programs, parts, 2)
    key_sums_kernel[(programs, parts)](
        *(k_CHPK, v_CHPK, weight_CP, rounded_MK, rest_MK, sums, masses, tops),
        *scales,
        *row_strides(k_CHPK),
        *row_strides(v_CHPK),
        *(heads, positions, split_positions, cell_splits),
        **sums_constants(features, head_dim, k_CHPK.dtype, sizes),
        **sizes.options,
    )
    context_kernel[(groups, triton.cdiv(head_dim, REDUCE_COLUMNS))](
        *(sums, masses, tops, context_CHMK, log_mass_CHM, columns_CHXK, scalars_CHX),
        *(FAVOR_EPSILON, heads, cell_splits, parts),
        **reduce_constants(features, head_dim, k_CHPK.dtype, sizes),
        **reduce_options(features),
    )
    sizes = tile_of("queries", q_CHQK)
    cell_splits, split_positions = splits(groups, queries, sizes)
    queries_kernel[(groups * cell_splits,)](
        *(q_CHQK, out_CHQK, rows_CHQX, rounded_MK),
        *(context_CHMK, log_mass_CHM, columns_CHXK, scalars_CHX),
        *scales,
        *row_strides(q_CHQK),
        *row_strides(out_CHQK),
        *(heads, queries, split_positions, cell_splits),
        **constants(features, head_dim, q_CHQK.dtype, sizes),
        **sizes.options,
    )
    return results


@_forward.register_fake
def _(
    q_CHQK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor, projection_MK: Tensor, weight_CP: Tensor | None
) -> tuple[Tensor, ...]:
    return _forward_like(q_CHQK, v_CHPK, projection_MK)


def _forward_like(
    q_CHQK: Tensor, v_CHPK: Tensor, projection_MK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Memory for the results of the forward op."""
    (cells, heads, queries, head_dim), features = q_CHQK.shape, len(projection_MK)
    scalars_CHX = v_CHPK.new_empty(cells, heads, 4, dtype=torch.float32)
    return (
        empty_heads_inside(q_CHQK),
        scalars_CHX.new_empty(cells, heads, queries, 3),
        scalars_CHX.new_empty(cells, heads, features, head_dim, dtype=operand_dtype(v_CHPK.dtype)),
        scalars_CHX.new_empty(cells, heads, features),
        scalars_CHX.new_empty(cells, heads, 2, head_dim),
        scalars_CHX,
    )


def _prepared(
    projection_MK: Tensor, weight_CP: Tensor | None, operand: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Projection and weights as the kernels read them."""
    weight_CP = None if weight_CP is None else weight_CP.float().contiguous()
    return projection_MK.to(operand).contiguous(), weight_CP


def _rest_of(projection_MK: Tensor, rounded_MK: Tensor) -> Tensor:
    """What rounding left of the projection, in the type of the rounded one."""
    return (projection_MK.float() - rounded_MK.float()).to(rounded_MK.dtype)


def _scales(head_dim: int) -> tuple[float, float]:
    """Factors of a product with a feature and of a squared norm, in units of log 2."""
    root = head_dim**-0.25
    return root * LOG2_E, 0.5 * root * root * LOG2_E


@registered_op("favor_attention_backward")
def _backward(
    grad_CHQK: Tensor,
    q_CHQK: Tensor,
    k_CHPK: Tensor,
    v_CHPK: Tensor,
    projection_MK: Tensor,
    weight_CP: Tensor | None,
    rows_CHQX: Tensor,
    context_CHMK: Tensor,
    log_mass_CHM: Tensor,
    columns_CHXK: Tensor,
    scalars_CHX: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    saved = (rows_CHQX, context_CHMK, log_mass_CHM, columns_CHXK, scalars_CHX)
    return backward(grad_CHQK, q_CHQK, k_CHPK, v_CHPK, projection_MK, weight_CP, saved)


def backward(
    grad_CHQK: Tensor,
    q_CHQK: Tensor,
    k_CHPK: Tensor,
    v_CHPK: Tensor,
    projection_MK: Tensor,
    weight_CP: Tensor | None,
    saved: tuple[Tensor, ...],
    tile_of: TileOf = sizes_of,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the op, with tiles of the caller's choice; ``saved`` is what forward gave behind its output."""
    rows_CHQX, context_CHMK, log_mass_CHM, columns_CHXK, scalars_CHX = saved
    grads = grad_q_CHQK, grad_k_CHPK, grad_v_CHPK = _backward_like(q_CHQK, k_CHPK, v_CHPK)
    cells, heads, queries, head_dim = q_CHQK.shape
    if not cells * heads * queries:
        return grad_q_CHQK, grad_k_CHPK.zero_(), grad_v_CHPK.zero_()
    grad_CHQK, q_CHQK = with_dense_rows(grad_CHQK), with_dense_rows(q_CHQK)
    k_CHPK, v_CHPK = with_dense_rows(k_CHPK), with_dense_rows(v_CHPK)
    rounded_MK, weight_CP = _prepared(projection_MK, weight_CP, context_CHMK.dtype)
    rest_MK = _rest_of(projection_MK, rounded_MK)
    features, positions, groups = len(projection_MK), k_CHPK.shape[2], cells * heads
    (scale, half), root = _scales(head_dim), head_dim**-0.25

    sizes = tile_of("backward_queries", q_CHQK)
    cell_splits, split_positions = splits(groups, queries, sizes)
    delta = scalars_CHX.new_empty(groups, queries)
    backward_queries_kernel[(groups * cell_splits,)](
        *(q_CHQK, grad_CHQK, grad_q_CHQK, rows_CHQX, delta, rounded_MK, rest_MK),
        *(context_CHMK, log_mass_CHM, columns_CHXK, scalars_CHX),
        *(scale, root),
        *row_strides(q_CHQK),
        *row_strides(grad_CHQK),
        *row_strides(grad_q_CHQK),
        *(heads, queries, split_positions, cell_splits),
        **constants(features, head_dim, q_CHQK.dtype, sizes),
        HOLDS_RESTS=sizes.holds_rests,
        **sizes.options,
    )
    sizes = tile_of("gradient_sums", q_CHQK)
    cell_splits, split_positions = splits(groups, queries, sizes)
    programs, padded = groups * cell_splits, sums_features(features, q_CHQK.dtype, sizes)
    sums, slopes = delta.new_empty(programs, padded, head_dim), delta.new_empty(programs, padded)
    gradient_sums_kernel[(programs, sums_parts(features, q_CHQK.dtype, sizes))](
        *(q_CHQK, grad_CHQK, rows_CHQX, delta, rounded_MK, sums, slopes),
        scale,
        *row_strides(q_CHQK),
        *row_strides(grad_CHQK),
        *(heads, queries, split_positions, cell_splits),
        **sums_constants(features, head_dim, q_CHQK.dtype, sizes),
        **sizes.options,
    )
    table_CHMK, offset_CHM = torch.empty_like(context_CHMK), torch.empty_like(log_mass_CHM)
    grad_columns_CHXK, largest = torch.empty_like(columns_CHXK), sums.new_empty(groups)
    gradient_context_kernel[(groups, triton.cdiv(head_dim, REDUCE_COLUMNS))](
        *(sums, slopes, log_mass_CHM, scalars_CHX, table_CHMK, offset_CHM, grad_columns_CHXK, largest),
        *(FAVOR_EPSILON, cell_splits),
        **reduce_constants(features, head_dim, q_CHQK.dtype, sizes),
        **reduce_options(features),
    )
    sizes = tile_of("backward_keys", k_CHPK)
    cell_splits, split_positions = splits(groups, positions, sizes)
    backward_keys_kernel[(groups * cell_splits,)](
        *(k_CHPK, v_CHPK, weight_CP, grad_k_CHPK, grad_v_CHPK),
        *(rounded_MK, rest_MK, table_CHMK, offset_CHM),
        *(log_mass_CHM, columns_CHXK, grad_columns_CHXK, scalars_CHX, largest),
        *(scale, half, root),
        *row_strides(k_CHPK),
        *row_strides(v_CHPK),
        *row_strides(grad_k_CHPK),
        *(heads, positions, split_positions, cell_splits),
        **constants(features, head_dim, k_CHPK.dtype, sizes),
        HOLDS_RESTS=sizes.holds_rests,
        **sizes.options,
    )
    return grads


@_backward.register_fake
def _(
    grad_CHQK: Tensor,
    q_CHQK: Tensor,
    k_CHPK: Tensor,
    v_CHPK: Tensor,
    projection_MK: Tensor,
    weight_CP: Tensor | None,
    rows_CHQX: Tensor,
    context_CHMK: Tensor,
    log_mass_CHM: Tensor,
    columns_CHXK: Tensor,
    scalars_CHX: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward_like(q_CHQK, k_CHPK, v_CHPK)


def _backward_like(q_CHQK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the results of the backward op."""
    return empty_heads_inside(q_CHQK), empty_heads_inside(k_CHPK), empty_heads_inside(v_CHPK)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_CHQK: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_CHQK is None:
        return (None,) * 5
    return (*_backward(grad_CHQK, *ctx.saved_tensors), None, None)


_forward.register_autograd(_gradients, setup_context=_setup_context)


def favor_attention(
    q_CHQK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor, projection_MK: Tensor, weight_CP: Tensor | None
) -> Tensor:
    """As ``cellfoundry_kernels.favor``."""
    return _forward(q_CHQK, k_CHPK, v_CHPK, projection_MK, weight_CP)[0]
