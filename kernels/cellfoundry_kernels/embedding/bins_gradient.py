"""The role of backward that takes the output's gradient through the table and the shares to the two layers.

Tiles stand on end, bins x tokens: what is summed over tokens is an operand as it is.

Shape legend: as in backward.py.
"""

# Arguments of a kernel have no Python type.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from cellfoundry_kernels.embedding.forward import PARTS_K, parts


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
def bins_role(
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
