"""The kernels at the published model's shape: useful FLOP/s on ragged cells, against padded and plain torch.

Needs cellfoundry_kernels, torch and numpy only. On CUDA the public op takes its Triton twin and is compared
with the torch reference too; without CUDA those rows say "not measured". FLOPs are the useful ones: nobody
asked for padding, so a padded peer is credited with the same FLOPs for the same cells. On a CPU attention has
4 heads instead of 12: heads are independent, and the rate is the same in a third of the time.

Shape legend: N tokens over all cells, C cells, L longest cell, H heads, K head dim, D width, B bins,
P positions, M features.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

import cellfoundry_kernels as kernels
from cellfoundry_bench.measure import compare, median_seconds
from cellfoundry_bench.ragged import offsets, real_lengths, synthetic_counts
from cellfoundry_bench.results import Curve, Row, SuiteResult
from cellfoundry_kernels.embedding import reference as embedding_reference
from cellfoundry_kernels.favor import reference as favor_reference
from cellfoundry_kernels.varlen import reference as varlen_reference

HEAD_DIM, WIDTH, BINS = 64, 768, 100
POSITIONS, N_GENES, DECODER_HEADS, FEATURES = 19_266, 19_264, 8, 266
NO_GPU = "this machine has no NVIDIA GPU"


def run() -> SuiteResult:
    """Measure on the GPU in bf16 where there is one, else on the CPU in float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cells = 64 if device == "cuda" else 8
    rows = [*attention_rows(real_lengths(cells) + 2, device), *value_embedding_rows(cells * 2000, device)]
    rows += favor_rows(8 if device == "cuda" else 1, device)
    rows.append(mask_row(256 if device == "cuda" else 32, device))
    return SuiteResult(rows, [attention_curve(device)])


def attention_rows(lengths: npt.NDArray[np.int64], device: str, rounds: int = 3) -> list[Row]:
    """Packed attention over a ragged batch against padded SDPA, and on CUDA against the cell-by-cell loop."""
    q_NHK, k_NHK, v_NHK = _packed(int(lengths.sum()), device)
    heads, cu_seqlens, longest = q_NHK.shape[1], offsets(lengths, device), int(lengths.max())
    flops = 4 * heads * HEAD_DIM * float((lengths.astype(np.float64) ** 2).sum())
    padded_q_CHLK, padded_k_CHLK, padded_v_CHLK = (
        _pad(x, cu_seqlens, longest) for x in (q_NHK, k_NHK, v_NHK)
    )
    mask_C11L = _token_mask(cu_seqlens, longest)[:, None, None, :]
    where = f"{len(lengths)} cells, {longest} tokens the longest, {heads} heads, {q_NHK.dtype} on {device}"

    def packed() -> Tensor:
        return kernels.varlen_attention(q_NHK, k_NHK, v_NHK, cu_seqlens, longest)

    def padded_sdpa() -> Tensor:
        return F.scaled_dot_product_attention(
            padded_q_CHLK, padded_k_CHLK, padded_v_CHLK, attn_mask=mask_C11L
        )

    def loop() -> Tensor:
        return varlen_reference.varlen_attention(q_NHK, k_NHK, v_NHK, cu_seqlens, HEAD_DIM**-0.5)

    bar = 1.5 if device == "cuda" else None  # set for the GPU in bf16
    timed = compare(packed, padded_sdpa, rounds=rounds)
    rows = [
        timed.rate_row("attention forward", flops / 1e9, "useful GFLOP/s", "padded SDPA", bar=bar, note=where)
    ]
    for tensor in (q_NHK, k_NHK, v_NHK, padded_q_CHLK, padded_k_CHLK, padded_v_CHLK):
        tensor.requires_grad_()
    timed = compare(lambda: packed().sum().backward(), lambda: padded_sdpa().sum().backward(), rounds=rounds)
    name = "attention forward and backward"
    rows.append(timed.rate_row(name, 3.5 * flops / 1e9, "useful GFLOP/s", "padded SDPA", note=where))
    name, peer = "attention forward, Triton", "torch, one SDPA a cell"
    if device == "cuda":
        return [*rows, compare(packed, loop, rounds=rounds).rate_row(name, flops / 1e9, "GFLOP/s", peer)]
    return [*rows, Row(name, None, "GFLOP/s", peer, note=NO_GPU)]


def attention_curve(device: str, rounds: int = 3) -> Curve:
    """Forward GFLOP/s of the packed kernel over the length of a cell, about 8k tokens a batch."""
    points = []
    for length in (256, 512, 1024, 2048, 4096, *((8192, 19_266) if device == "cuda" else ())):
        lengths = np.full(max(8192 // length, 1), length)
        q_NHK, k_NHK, v_NHK = _packed(int(lengths.sum()), device)
        packed = functools.partial(
            kernels.varlen_attention, q_NHK, k_NHK, v_NHK, offsets(lengths, device), length
        )
        heads = q_NHK.shape[1]
        flops = 4 * heads * HEAD_DIM * len(lengths) * length**2
        points.append((float(length), flops / median_seconds(packed, rounds=rounds) / 1e9))
    name = f"varlen_attention forward, head dim {HEAD_DIM}, {device}"
    return Curve("attention over the length of a cell", "tokens a cell", "GFLOP/s", {name: points})


def value_embedding_rows(tokens: int, device: str, rounds: int = 3) -> list[Row]:
    """Value embedding forward and backward; backward repeats the two products twice (3x forward's FLOPs)."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((BINS, 1), (BINS,), (BINS, BINS), (BINS,), (BINS, WIDTH))
    weights = [torch.randn(shape, generator=generator).mul_(0.1).to(device) for shape in shapes]
    mlp_B1, bias_B, mlp2_BB, bias2_B, table_BD = weights
    value_N = torch.rand(tokens, generator=generator).mul_(8).to(device)
    for weight in weights:
        weight.requires_grad_()

    def ours() -> None:
        kernels.value_embedding(value_N, mlp_B1, bias_B, mlp2_BB, bias2_B, table_BD, 1.0).sum().backward()

    def peer() -> None:
        embedding_reference.value_embedding(
            value_N, mlp_B1, bias_B, mlp2_BB, bias2_B, table_BD, 1.0
        ).sum().backward()

    gflop = 3 * 2 * tokens * BINS * (BINS + WIDTH) / 1e9
    name, where = "value embedding forward and backward", f"{tokens} values, float32 on {device}"
    if device == "cuda":
        return [compare(ours, peer, rounds=rounds).rate_row(name, gflop, "GFLOP/s", "torch", note=where)]
    return [
        Row(name, gflop / median_seconds(ours, rounds=rounds), "GFLOP/s", note=where),
        Row(f"{name}, Triton", None, "GFLOP/s", "torch", note=NO_GPU),
    ]


def favor_rows(cells: int, device: str, rounds: int = 3) -> list[Row]:
    """FAVOR+ forward over all positions of the published decoder."""
    generator = torch.Generator().manual_seed(0)
    shape = (cells, DECODER_HEADS, POSITIONS, HEAD_DIM)
    dtype = _dtype(device)
    q_CHPK, k_CHPK, v_CHPK = (torch.randn(shape, generator=generator).to(device, dtype) for _ in "qkv")
    projection_MK = torch.randn(FEATURES, HEAD_DIM, generator=generator).to(device)
    ours = functools.partial(kernels.favor_attention, q_CHPK, k_CHPK, v_CHPK, projection_MK)
    peer = functools.partial(favor_reference.favor_attention, q_CHPK, k_CHPK, v_CHPK, projection_MK)
    gflop = 8 * cells * DECODER_HEADS * POSITIONS * FEATURES * HEAD_DIM / 1e9
    name, where = "FAVOR+ forward", f"{cells} x {POSITIONS} positions, {q_CHPK.dtype} on {device}"
    if device == "cuda":
        timed = compare(ours, peer, rounds=rounds)
        return [timed.rate_row(name, gflop, "GFLOP/s", "torch", note=where)]
    return [
        Row(name, gflop / median_seconds(ours, rounds=rounds), "GFLOP/s", note=where),
        Row(f"{name}, Triton", None, "GFLOP/s", "torch", note=NO_GPU),
    ]


def mask_row(cells: int, device: str, rounds: int = 3) -> Row:
    """Masking of a batch of raw counts, thinning included."""
    indptr, gene_ids, counts = (tensor.to(device) for tensor in synthetic_counts(cells, N_GENES))
    cell_ids = torch.arange(cells, device=device)
    mask = functools.partial(
        kernels.mask_cells, indptr, gene_ids, counts, cell_ids, n_genes=N_GENES, seed=0, step=0
    )
    note = f"{cells} synthetic cells of real lengths, {N_GENES} genes, on {device}"
    return Row("mask_cells", cells / median_seconds(mask, rounds=rounds), "cells/s", note=note)


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def _packed(tokens: int, device: str) -> list[Tensor]:
    """Random q, k, v, each (N, H, K)."""
    generator = torch.Generator().manual_seed(0)
    shape = (tokens, 12 if device == "cuda" else 4, HEAD_DIM)
    return [torch.randn(shape, generator=generator).to(device, _dtype(device)) for _ in "qkv"]


def _token_mask(cu_seqlens: Tensor, longest: int) -> Tensor:
    """True where a padded batch holds a token, (C, L)."""
    return torch.arange(longest, device=cu_seqlens.device) < cu_seqlens.diff().long()[:, None]


def _pad(packed_NHK: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """The same tokens as (C, H, L, K), zeros behind each cell's last."""
    out_CLHK = packed_NHK.new_zeros(len(cu_seqlens) - 1, longest, *packed_NHK.shape[1:])
    out_CLHK[_token_mask(cu_seqlens, longest)] = packed_NHK
    return out_CLHK.transpose(1, 2).contiguous()
