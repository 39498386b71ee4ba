"""FAVOR+ on NVIDIA GPUs: the launches, registered with torch as one op and its backward.

Feature maps stay in registers. Sums over positions are split among programs and added in a fixed order, so a
result repeats bit for bit; the number of splits follows the number of cells and heads.

Shape legend: see ``tiles``; X = 2 or 3 numbers a head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from cellfoundry_kernels.favor.backward import (
    backward_keys_kernel,
    backward_queries_kernel,
    gradient_context_kernel,
    gradient_sums_kernel,
)
from cellfoundry_kernels.favor.forward import context_kernel, key_sums_kernel, queries_kernel
from cellfoundry_kernels.favor.reference import FAVOR_EPSILON
from cellfoundry_kernels.favor.tiles import (
    LOG2_E,
    constants,
    empty_heads_inside,
    operand_dtype,
    padded_features,
    row_strides,
    splits,
    with_dense_rows,
)
from cellfoundry_kernels.launch import TYPE_NAMES, Launch, LaunchOptions, argument_types

# Features of a block, in the kernels that sum over positions and in those that write rows.
SUM_FEATURES, ROW_FEATURES = 128, 64
# Columns of a program that adds up splits.
REDUCED_COLUMNS = 16


def sum_block(dtype: torch.dtype) -> int:
    """Positions of a tile in the kernels that sum over positions."""
    return 16 if dtype == torch.float32 else 64


def sum_options(dtype: torch.dtype) -> LaunchOptions:
    """Launch options of the kernels that sum over positions: a quarter of the registers hold the sums."""
    return {"num_warps": 8, "num_stages": 2}


def row_block(dtype: torch.dtype) -> int:
    """Positions of a tile in the kernels that write rows."""
    return 16 if dtype == torch.float32 else 64


def row_options(dtype: torch.dtype) -> LaunchOptions:
    """Launch options of the kernels that write rows."""
    return {"num_warps": 4, "num_stages": 2}


def reduce_options() -> LaunchOptions:
    """Launch options of the kernels that add up splits."""
    return {"num_warps": 8, "num_stages": 2}


def reduce_constants(features: int, head_dim: int) -> dict[str, Any]:
    """``constexpr`` arguments of the kernels that add up splits."""
    return {
        "FEATURES": features,
        "CHANNELS": head_dim,
        "PADDED_M": padded_features(features, SUM_FEATURES),
        "BLOCK_M": triton.next_power_of_2(features),
        "BLOCK_D": REDUCED_COLUMNS,
    }


def scales(head_dim: int) -> dict[str, float]:
    """Factors of a product with a feature and of a squared norm, in units of log 2."""
    root = head_dim**-0.25
    return {"scale": root * LOG2_E, "half": 0.5 * root * root * LOG2_E}


@torch.library.custom_op("cellfoundry::favor_attention", mutates_args=())
def favor_forward(
    q_CHQK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor, projection_MK: Tensor, weight_CP: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output (C, H, Q, K) and what backward needs of the context; see ``context_kernel``."""
    dtype, (features, channels) = v_CHPK.dtype, projection_MK.shape
    (cells, heads, queries, _), positions = q_CHQK.shape, k_CHPK.shape[2]
    groups = cells * heads
    out_CHQK, rows_CHQX, context_CHMK, log_mass_CHM, columns_CHXK, scalars_CHX = _forward_like(
        q_CHQK, v_CHPK, projection_MK
    )
    if not groups or not queries:
        return out_CHQK, rows_CHQX, context_CHMK, log_mass_CHM, columns_CHXK, scalars_CHX
    q_CHQK, k_CHPK, v_CHPK = with_dense_rows(q_CHQK), with_dense_rows(k_CHPK), with_dense_rows(v_CHPK)
    projection_MK = projection_MK.to(context_CHMK.dtype).contiguous()
    weight_CP = None if weight_CP is None else weight_CP.contiguous()

    block = sum_block(dtype)
    cell_splits, split_positions = splits(groups, positions, block)
    programs, padded = groups * cell_splits, padded_features(features, SUM_FEATURES)
    sums = scalars_CHX.new_empty(programs, padded, channels)
    masses, tops = sums.new_empty(programs, padded), sums.new_empty(programs, 2)
    key_sums_kernel[(programs,)](
        k_CHPK,
        v_CHPK,
        weight_CP,
        projection_MK,
        sums,
        masses,
        tops,
        *scales(channels).values(),
        *row_strides(k_CHPK),
        *row_strides(v_CHPK),
        heads,
        positions,
        split_positions,
        cell_splits,
        **constants(features, channels, dtype, block, SUM_FEATURES),
        **sum_options(dtype),
    )
    context_kernel[(groups, triton.cdiv(channels, REDUCED_COLUMNS))](
        sums,
        masses,
        tops,
        context_CHMK,
        log_mass_CHM,
        columns_CHXK,
        scalars_CHX,
        FAVOR_EPSILON,
        heads,
        cell_splits,
        **reduce_constants(features, channels),
        **reduce_options(),
    )
    block = row_block(dtype)
    cell_splits, split_positions = splits(groups, queries, block)
    queries_kernel[(groups * cell_splits,)](
        q_CHQK,
        out_CHQK,
        rows_CHQX,
        projection_MK,
        context_CHMK,
        log_mass_CHM,
        columns_CHXK,
        scalars_CHX,
        *scales(channels).values(),
        *row_strides(q_CHQK),
        *row_strides(out_CHQK),
        heads,
        queries,
        split_positions,
        cell_splits,
        **constants(features, channels, dtype, block, ROW_FEATURES),
        **row_options(dtype),
    )
    return out_CHQK, rows_CHQX, context_CHMK, log_mass_CHM, columns_CHXK, scalars_CHX


def _forward_like(q_CHQK: Tensor, v_CHPK: Tensor, projection_MK: Tensor) -> tuple[Tensor, ...]:
    """Memory for the results of the forward op."""
    (cells, heads), (features, channels) = q_CHQK.shape[:2], projection_MK.shape
    numbers = v_CHPK.new_empty(cells, heads, 3, dtype=torch.float32)
    return (
        empty_heads_inside(q_CHQK),
        numbers.new_empty(cells, heads, q_CHQK.shape[2], 2),
        v_CHPK.new_empty(cells, heads, features, channels, dtype=operand_dtype(v_CHPK.dtype)),
        numbers.new_empty(cells, heads, features),
        numbers.new_empty(cells, heads, 2, channels),
        numbers,
    )


@favor_forward.register_fake
def _(
    q_CHQK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor, projection_MK: Tensor, weight_CP: Tensor | None
) -> tuple[Tensor, ...]:
    return _forward_like(q_CHQK, v_CHPK, projection_MK)


@torch.library.custom_op("cellfoundry::favor_attention_backward", mutates_args=())
def favor_backward(
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
    dtype, (features, channels) = v_CHPK.dtype, projection_MK.shape
    (cells, heads, queries, _), positions = q_CHQK.shape, k_CHPK.shape[2]
    groups = cells * heads
    grad_q_CHQK, grad_k_CHPK, grad_v_CHPK = (empty_heads_inside(x) for x in (q_CHQK, k_CHPK, v_CHPK))
    if not groups or not queries:
        return grad_q_CHQK, grad_k_CHPK.zero_(), grad_v_CHPK.zero_()
    grad_CHQK, q_CHQK = with_dense_rows(grad_CHQK), with_dense_rows(q_CHQK)
    k_CHPK, v_CHPK = with_dense_rows(k_CHPK), with_dense_rows(v_CHPK)
    projection_MK = projection_MK.to(context_CHMK.dtype).contiguous()
    weight_CP = None if weight_CP is None else weight_CP.contiguous()
    factors, root = scales(channels), channels**-0.25

    block = row_block(dtype)
    cell_splits, split_positions = splits(groups, queries, block)
    delta = scalars_CHX.new_empty(groups, queries)
    backward_queries_kernel[(groups * cell_splits,)](
        q_CHQK,
        grad_CHQK,
        grad_q_CHQK,
        rows_CHQX,
        delta,
        projection_MK,
        context_CHMK,
        log_mass_CHM,
        columns_CHXK,
        scalars_CHX,
        factors["scale"],
        root,
        *row_strides(q_CHQK),
        *row_strides(grad_CHQK),
        *row_strides(grad_q_CHQK),
        heads,
        queries,
        split_positions,
        cell_splits,
        **constants(features, channels, dtype, block, ROW_FEATURES),
        **row_options(dtype),
    )
    block = sum_block(dtype)
    cell_splits, split_positions = splits(groups, queries, block)
    programs, padded = groups * cell_splits, padded_features(features, SUM_FEATURES)
    sums = delta.new_empty(programs, padded, channels)
    slopes = sums.new_empty(programs, padded)
    gradient_sums_kernel[(programs,)](
        q_CHQK,
        grad_CHQK,
        rows_CHQX,
        delta,
        projection_MK,
        sums,
        slopes,
        factors["scale"],
        *row_strides(q_CHQK),
        *row_strides(grad_CHQK),
        heads,
        queries,
        split_positions,
        cell_splits,
        **constants(features, channels, dtype, block, SUM_FEATURES),
        **sum_options(dtype),
    )
    table_CHMK, offset_CHM = torch.empty_like(context_CHMK), torch.empty_like(log_mass_CHM)
    grad_columns_CHXK, largest = torch.empty_like(columns_CHXK), sums.new_empty(groups)
    gradient_context_kernel[(groups, triton.cdiv(channels, REDUCED_COLUMNS))](
        sums,
        slopes,
        log_mass_CHM,
        scalars_CHX,
        table_CHMK,
        offset_CHM,
        grad_columns_CHXK,
        largest,
        FAVOR_EPSILON,
        cell_splits,
        **reduce_constants(features, channels),
        **reduce_options(),
    )
    block = row_block(dtype)
    cell_splits, split_positions = splits(groups, positions, block)
    backward_keys_kernel[(groups * cell_splits,)](
        k_CHPK,
        v_CHPK,
        weight_CP,
        grad_k_CHPK,
        grad_v_CHPK,
        projection_MK,
        table_CHMK,
        offset_CHM,
        log_mass_CHM,
        columns_CHXK,
        grad_columns_CHXK,
        scalars_CHX,
        largest,
        *factors.values(),
        root,
        *row_strides(k_CHPK),
        *row_strides(v_CHPK),
        *row_strides(grad_k_CHPK),
        heads,
        positions,
        split_positions,
        cell_splits,
        **constants(features, channels, dtype, block, ROW_FEATURES),
        **row_options(dtype),
    )
    return grad_q_CHQK, grad_k_CHPK, grad_v_CHPK


@favor_backward.register_fake
def _(
    grad_CHQK: Tensor, q_CHQK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor, *saved: Tensor | None
) -> tuple[Tensor, ...]:
    return tuple(empty_heads_inside(x) for x in (q_CHQK, k_CHPK, v_CHPK))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_CHQK: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_CHQK is None:
        return (None,) * 5
    return (*favor_backward(grad_CHQK, *ctx.saved_tensors), None, None)


favor_forward.register_autograd(_backward, setup_context=_setup_context)


def favor_attention(
    q_CHQK: Tensor, k_CHPK: Tensor, v_CHPK: Tensor, projection_MK: Tensor, weight_CP: Tensor | None
) -> Tensor:
    """As ``cellfoundry_kernels.favor``."""
    return favor_forward(q_CHQK, k_CHPK, v_CHPK, projection_MK, weight_CP)[0]


def published_launches() -> list[Launch]:
    """What runs in the published decoder: 266 features of heads of 64."""
    features, head_dim = 266, 64
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        operand = f"*{TYPE_NAMES[operand_dtype(dtype)]}"
        single = ("sums", "masses", "tops", "log_mass", "columns", "scalars", "rows", "delta", "slopes")
        single += ("offset", "grad_columns", "largest")
        other = {f"{name}_ptr": "*fp32" for name in single}
        other |= {f"{name}_ptr": operand for name in ("projection", "context", "table")}
        other |= {name: "fp32" for name in ("scale", "half", "root", "epsilon")}
        sums = constants(features, head_dim, dtype, sum_block(dtype), SUM_FEATURES), sum_options(dtype)
        rows = constants(features, head_dim, dtype, row_block(dtype), ROW_FEATURES), row_options(dtype)
        reduced = reduce_constants(features, head_dim), reduce_options()
        for kernel, (chosen, options) in (
            (key_sums_kernel, sums),
            (context_kernel, reduced),
            (queries_kernel, rows),
            (backward_queries_kernel, rows),
            (gradient_sums_kernel, sums),
            (gradient_context_kernel, reduced),
            (backward_keys_kernel, rows),
        ):
            if "weight_ptr" in kernel.arg_names:
                chosen = chosen | {"weight_ptr": None}
            types = argument_types(kernel, dtype, chosen, other)
            aligned = tuple(name for name in kernel.arg_names if name.endswith(("_cell", "_head", "_row")))
            aligned += ("split_positions",)
            name = f"favor_attention-{kernel.fn.__name__}-m{features}-d{head_dim}-{TYPE_NAMES[dtype]}"
            found.append(Launch(name, kernel, types, chosen, options, aligned))
    return found
