"""Backward of the value embedding in half precision, in two launches; float32 takes backward_exact.py.

``shares_kernel`` writes the shares of the bins, (N, 128) in half precision, to a buffer that lives for this call
only: 33 MB for 128,000 tokens, beside 197 MB of gradient at width 768. ``backward_kernel`` reads them and the
output's gradient. Its programs take one of two roles, side by side:

- the discretisation's gradients need whole rows of the gradient; a program keeps its sum for mlp2 (64 KiB in
  float32) in registers while it walks over tokens;
- the table's gradient (bins x width, 300 KiB in float32) exceeds a processor's registers, so a program owns
  ``TABLE_D`` columns (128 KiB).

Both roles read the whole gradient, at the same pace from the first token on: what one has read, the other finds
in the L2 cache (50 MB on H100) as long as they are less than about 20,000 tokens apart. Without the buffer each
role would compute the shares anew, the second one once for each slice of the width, and the kernels spend more
time on a tile's softmax than on its products.

Each program writes its sum over its own tokens to a buffer of its own, and one sum over the buffers, always in the
same order, ends it: no atomics, the same bits in every run on a device.

Tiles stand on end in the second launch, bins x tokens: what is summed over tokens is an operand as it is.

Shape legend: as in forward.py; C the columns of both packed layers' gradients, S partial sums.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cellfoundry_kernels.embedding.forward import (
    PARTS,
    PARTS_K,
    has_large_tiles,
    own_row,
    parts,
    processors,
    shares,
)
from cellfoundry_kernels.launch import LaunchOptions, capability_of, dot_precision


@triton.jit
def shares_kernel(
    value_ptr,
    affine_ptr,
    mix_ptr,
    share_ptr,
    alpha,
    mask_token_id,
    pad_token_id,
    tokens,
    bins,
    rows,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Write the shares of ``BLOCK_N`` tokens: what forward multiplies with the table."""
    bin_B = tl.arange(0, BLOCK_B)
    affine_BK = tl.load(affine_ptr + bin_B[:, None] * PARTS_K + tl.arange(0, PARTS_K)[None, :])
    mix_BI = tl.load(mix_ptr + bin_B[:, None] * BLOCK_B + bin_B[None, :])
    token_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_token_N = token_N < tokens
    value_N = tl.load(value_ptr + token_N, mask=is_token_N, other=0.0).to(tl.float32)
    own_N = own_row(value_N, mask_token_id, pad_token_id, bins, rows)
    share_NB = shares(value_N, own_N, affine_BK, mix_BI, alpha, BLOCK_B, PRECISION)
    offset_NB = token_N[:, None].to(tl.int64) * BLOCK_B + bin_B[None, :]
    tl.store(share_ptr + offset_NB, share_NB, mask=is_token_N[:, None])


@triton.jit
def _through_shares(
    grad_share_BN,
    token_N,
    grad_mix_BI,
    grad_affine_IK,
    value_ptr,
    share_ptr,
    affine_ptr,
    mix_ptr,
    grad_value_ptr,
    alpha,
    tokens,
    NEED_VALUE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take the shares' gradient on to the two layers (and to the values): both sums with these tokens added."""
    bin_B = tl.arange(0, BLOCK_B)
    dtype: tl.constexpr = mix_ptr.dtype.element_ty
    is_token_N = token_N < tokens
    # A row of a mask or pad value's own has the whole share: the gradient of its logits is 0.
    share_BN = tl.load(
        share_ptr + token_N[None, :].to(tl.int64) * BLOCK_B + bin_B[:, None],
        mask=is_token_N[None, :],
        other=0.0,
    ).to(tl.float32)
    grad_share_BN *= share_BN
    grad_logits_BN = grad_share_BN - share_BN * tl.sum(grad_share_BN, 0)[None, :]
    low_grad_logits_BN = grad_logits_BN.to(dtype)
    value_N = tl.load(value_ptr + token_N, mask=is_token_N, other=0.0).to(tl.float32)
    part_NK = parts(value_N, dtype)
    affine_BK = tl.load(affine_ptr + bin_B[:, None] * PARTS_K + tl.arange(0, PARTS_K)[None, :])
    hidden_IN = tl.dot(affine_BK, tl.trans(part_NK), input_precision=PRECISION)
    hidden_IN = tl.maximum(hidden_IN, 0.1 * hidden_IN).to(dtype)
    grad_mix_BI = tl.dot(low_grad_logits_BN, tl.trans(hidden_IN), grad_mix_BI, input_precision=PRECISION)
    mix_BI = tl.load(mix_ptr + bin_B[:, None] * BLOCK_B + bin_B[None, :])
    grad_hidden_IN = tl.dot(
        tl.trans(mix_BI), low_grad_logits_BN, alpha * grad_logits_BN, input_precision=PRECISION
    )
    grad_hidden_IN = tl.where(hidden_IN > 0, grad_hidden_IN, 0.1 * grad_hidden_IN)
    grad_affine_IK = tl.dot(grad_hidden_IN.to(dtype), part_NK, grad_affine_IK, input_precision=PRECISION)
    if NEED_VALUE:
        weight_I = tl.load(affine_ptr + bin_B * PARTS_K).to(tl.float32)
        grad_value_N = tl.sum(grad_hidden_IN * weight_I[:, None], 0)
        tl.store(grad_value_ptr + token_N, grad_value_N, mask=is_token_N)
    return grad_mix_BI, grad_affine_IK


@triton.jit
def _bins_role(
    program,
    programs,
    value_ptr,
    share_ptr,
    affine_ptr,
    mix_ptr,
    table_ptr,
    grad_out_ptr,
    grad_value_ptr,
    partial_ptr,
    alpha,
    tokens,
    rows,
    width,
    NEED_VALUE: tl.constexpr,
    PAIRED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program's sum over tokens of the gradients of ``mix_BI`` and ``affine_BK``, side by side.

    Two tiles of tokens at a time share what is read of the table: one of twice the size spills registers.
    """
    bin_B = tl.arange(0, BLOCK_B)
    is_row_B1 = (bin_B < rows)[:, None]
    grad_mix_BI = tl.zeros([BLOCK_B, BLOCK_B], tl.float32)
    grad_affine_IK = tl.zeros([BLOCK_B, PARTS_K], tl.float32)
    # Hoisted addresses of every product would fill the registers.
    step: tl.constexpr = 2 * BLOCK_N if PAIRED else BLOCK_N
    for start in tl.range(program * step, tokens, programs * step, disable_licm=True):
        token_N = start + tl.arange(0, BLOCK_N)
        next_N = token_N + BLOCK_N
        grad_share_BN = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
        next_grad_share_BN = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
        for first in range(0, width, BLOCK_D):
            column_D = first + tl.arange(0, BLOCK_D)
            is_column_1D = (column_D < width)[None, :]
            table_BD = tl.load(
                table_ptr + bin_B[:, None] * width + column_D[None, :],
                mask=is_row_B1 & is_column_1D,
                other=0.0,
            )
            grad_ND = tl.load(
                grad_out_ptr + token_N[:, None].to(tl.int64) * width + column_D[None, :],
                mask=(token_N < tokens)[:, None] & is_column_1D,
                other=0.0,
            )
            grad_share_BN = tl.dot(table_BD, tl.trans(grad_ND), grad_share_BN, input_precision=PRECISION)
            if PAIRED:
                grad_ND = tl.load(
                    grad_out_ptr + next_N[:, None].to(tl.int64) * width + column_D[None, :],
                    mask=(next_N < tokens)[:, None] & is_column_1D,
                    other=0.0,
                )
                next_grad_share_BN = tl.dot(
                    table_BD, tl.trans(grad_ND), next_grad_share_BN, input_precision=PRECISION
                )
        grad_mix_BI, grad_affine_IK = _through_shares(
            grad_share_BN,
            token_N,
            grad_mix_BI,
            grad_affine_IK,
            value_ptr,
            share_ptr,
            affine_ptr,
            mix_ptr,
            grad_value_ptr,
            alpha,
            tokens,
            NEED_VALUE,
            BLOCK_B,
            PRECISION,
        )
        if PAIRED:
            grad_mix_BI, grad_affine_IK = _through_shares(
                next_grad_share_BN,
                next_N,
                grad_mix_BI,
                grad_affine_IK,
                value_ptr,
                share_ptr,
                affine_ptr,
                mix_ptr,
                grad_value_ptr,
                alpha,
                tokens,
                NEED_VALUE,
                BLOCK_B,
                PRECISION,
            )

    columns: tl.constexpr = BLOCK_B + PARTS_K
    row_B1 = partial_ptr + (program.to(tl.int64) * BLOCK_B + bin_B[:, None]) * columns
    tl.store(row_B1 + bin_B[None, :], grad_mix_BI)
    tl.store(row_B1 + BLOCK_B + tl.arange(0, PARTS_K)[None, :], grad_affine_IK)


@triton.jit
def _table_role(
    program,
    programs,
    share_ptr,
    grad_out_ptr,
    partial_ptr,
    tokens,
    rows,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program's sum over tokens of ``BLOCK_D`` columns of the table's gradient."""
    # Programs that share tokens lie side by side, so that whole rows of the gradient are read at a time.
    slices = tl.cdiv(width, BLOCK_D)
    part = program // slices
    bin_B = tl.arange(0, BLOCK_B)
    column_D = program % slices * BLOCK_D + tl.arange(0, BLOCK_D)
    is_column_1D = (column_D < width)[None, :]
    grad_table_BD = tl.zeros([BLOCK_B, BLOCK_D], tl.float32)
    for start in tl.range(part * BLOCK_N, tokens, programs // slices * BLOCK_N, disable_licm=True):
        token_N = start + tl.arange(0, BLOCK_N)
        is_token_N1 = (token_N < tokens)[:, None]
        row_N1 = token_N[:, None].to(tl.int64)
        share_NB = tl.load(share_ptr + row_N1 * BLOCK_B + bin_B[None, :], mask=is_token_N1, other=0.0)
        grad_ND = tl.load(
            grad_out_ptr + row_N1 * width + column_D[None, :], mask=is_token_N1 & is_column_1D, other=0.0
        )
        grad_table_BD = tl.dot(tl.trans(share_NB), grad_ND, grad_table_BD, input_precision=PRECISION)
    offset_BD = (part.to(tl.int64) * rows + bin_B[:, None]) * width + column_D[None, :]
    tl.store(partial_ptr + offset_BD, grad_table_BD, mask=(bin_B < rows)[:, None] & is_column_1D)


@triton.jit
def backward_kernel(
    value_ptr,
    share_ptr,
    affine_ptr,
    mix_ptr,
    table_ptr,
    grad_out_ptr,
    grad_value_ptr,
    partial_bins_ptr,
    partial_table_ptr,
    alpha,
    tokens,
    rows,
    width,
    bins_programs,
    NEED_VALUE: tl.constexpr,
    PAIRED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TABLE_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Sums over tokens, the first ``bins_programs`` of the discretisation's gradients, the others of the table's."""
    program = tl.program_id(0)
    if program < bins_programs:
        _bins_role(
            program,
            bins_programs,
            value_ptr,
            share_ptr,
            affine_ptr,
            mix_ptr,
            table_ptr,
            grad_out_ptr,
            grad_value_ptr,
            partial_bins_ptr,
            alpha,
            tokens,
            rows,
            width,
            NEED_VALUE,
            PAIRED,
            BLOCK_N,
            BLOCK_B,
            BLOCK_D,
            PRECISION,
        )
    else:
        _table_role(
            program - bins_programs,
            tl.num_programs(0) - bins_programs,
            share_ptr,
            grad_out_ptr,
            partial_table_ptr,
            tokens,
            rows,
            width,
            BLOCK_N,
            BLOCK_B,
            TABLE_D,
            PRECISION,
        )


def shares_tiles(dtype: torch.dtype, block_b: int) -> dict[str, Any]:
    """Tile sizes of ``shares_kernel``: several small programs on a processor hide each other's softmax."""
    return {"BLOCK_N": 64, "BLOCK_B": block_b, "PRECISION": dot_precision(dtype)}


def backward_tiles(dtype: torch.dtype, block_b: int, capability: int) -> dict[str, Any]:
    """Tile sizes of ``backward_kernel``: the largest that do not spill registers."""
    large = has_large_tiles(capability)
    return {
        "PAIRED": large,
        "BLOCK_N": 64,
        "BLOCK_B": block_b,
        "BLOCK_D": 64 if large else 32,
        "TABLE_D": 256 if large else 128,
        "PRECISION": dot_precision(dtype),
    }


def backward_options(capability: int) -> LaunchOptions:
    """Options of ``backward_kernel``."""
    return {"num_warps": 8, "num_stages": 3 if has_large_tiles(capability) else 2}


SHARES_OPTIONS: LaunchOptions = {"num_warps": 4, "num_stages": 1}


def programs_of(tokens: int, width: int, blocks: dict[str, Any], device: torch.device) -> tuple[int, int]:
    """Programs of the first role, and of the second for each slice of the width.

    All run side by side. Of the products the table's gradient has 3 in 7; the other role's are smaller and wait for
    each other more, so it gets 5 processors in 8.
    """
    tiles = triton.cdiv(tokens, blocks["BLOCK_N"])
    bins_tiles = triton.cdiv(tiles, 2) if blocks["PAIRED"] else tiles
    slices = triton.cdiv(width, blocks["TABLE_D"])
    table_programs = min(max(3 * processors(device) // (8 * slices), 1), tiles)
    return min(max(processors(device) - slices * table_programs, 1), bins_tiles), table_programs


def backward(
    grad_ND: Tensor,
    value_N: Tensor,
    affine_BK: Tensor,
    mix_BI: Tensor,
    table_RD: Tensor,
    alpha: float,
    token_ids: tuple[float, float],
    bins: int,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``mix_BI`` and ``affine_BK`` side by side, of the table, and of the values (or nothing), float32."""
    tokens, (rows, width), block_b = len(value_N), table_RD.shape, len(mix_BI)
    sums: dict[str, Any] = {"dtype": torch.float32, "device": value_N.device}
    if not tokens or not width:
        empty = (torch.zeros(shape, **sums) for shape in ((block_b, block_b + PARTS), (rows, width), tokens))
        grad_BC, grad_RD, grad_value_N = empty
        return grad_BC, grad_RD, grad_value_N if need_value else grad_value_N[:0]
    value_N, grad_ND = value_N.contiguous(), grad_ND.contiguous()
    share_NB = table_RD.new_empty(tokens, block_b)
    blocks = shares_tiles(table_RD.dtype, block_b)
    shares_kernel[(triton.cdiv(tokens, blocks["BLOCK_N"]),)](
        value_N,
        affine_BK,
        mix_BI,
        share_NB,
        alpha,
        *token_ids,
        tokens,
        bins,
        rows,
        **blocks,
        **SHARES_OPTIONS,
    )
    capability = capability_of(value_N.device)
    blocks = backward_tiles(table_RD.dtype, block_b, capability)
    bins_programs, table_programs = programs_of(tokens, width, blocks, value_N.device)
    slices = triton.cdiv(width, blocks["TABLE_D"])
    partial_SBC = torch.empty(bins_programs, block_b, block_b + PARTS, **sums)
    partial_SRD = torch.empty(table_programs, rows, width, **sums)
    grad_value_N = torch.empty(tokens if need_value else 0, **sums)
    backward_kernel[(bins_programs + slices * table_programs,)](
        value_N,
        share_NB,
        affine_BK,
        mix_BI,
        table_RD.contiguous(),
        grad_ND,
        grad_value_N,
        partial_SBC,
        partial_SRD,
        alpha,
        tokens,
        rows,
        width,
        bins_programs,
        NEED_VALUE=need_value,
        **blocks,
        **backward_options(capability),
    )
    return partial_SBC.sum(0), partial_SRD.sum(0), grad_value_N
