"""Value embedding, FAVOR+ and masking against torch, and against the roofline of the device.

Shape legend: N tokens, D width, B bins, C cells, H heads, P positions, K head dim, M features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import cellfoundry_kernels as kernels
from cellfoundry_bench.kernels.attention import NO_GPU
from cellfoundry_bench.kernels.dense_masking import dense_mask
from cellfoundry_bench.kernels.timing import (
    ROUNDS,
    Roofline,
    Work,
    compare_on,
    median_device_seconds,
    rotated,
)
from cellfoundry_bench.ragged import synthetic_counts
from cellfoundry_bench.results import Row
from cellfoundry_kernels.embedding import reference as embedding_reference
from cellfoundry_kernels.favor import reference as favor_reference

WIDTH, BINS = 768, 100
POSITIONS, N_GENES, DECODER_HEADS, HEAD_DIM, FEATURES = 19_266, 19_264, 8, 64, 266
MEMORY_CELLS = 64
"""Of the memory row, a published batch: partial sums take as much for fewer cells, feature maps less."""


def value_embedding_rows(
    tokens: int, device: str, roofline: Roofline | None, *, width: int = WIDTH, rounds: int = ROUNDS
) -> list[Row]:
    """Forward and backward in one: against torch.compile of the reference, and of the roofline.

    Memory traffic: the output is written and its gradient read, (N, D) each; the value is 4 bytes. FLOPs: forward
    2 N B (B + D), backward twice that and the recomputed forward of the bins.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    flops = 2.0 * tokens * BINS * (3 * (BINS + width) + BINS)
    n_bytes = tokens * (2 * width * dtype.itemsize + 8)

    def make(op: Callable[..., Tensor]) -> Callable[[int], Work]:
        def of(seed: int) -> Work:
            value_N, weights = _embedding_inputs(tokens, width, device, dtype, seed)
            grad_ND = torch.ones(tokens, width, device=device, dtype=dtype)
            return lambda: torch.autograd.grad(op(value_N, *weights, alpha=1.0), weights, grad_ND)

        return of

    ours = rotated(make(kernels.value_embedding), device, n_bytes)
    peer = rotated(make(_compiled(embedding_reference.value_embedding, device)), device, n_bytes)
    timed = compare_on(device, ours, peer, rounds)
    name = "value_embedding forward and backward"
    note = f"{tokens:,} values, {BINS} bins, width {width}, {str(dtype).removeprefix('torch.')} on {device}"
    return [
        timed.rate_row(
            name,
            flops / 1e12,
            "TFLOP/s",
            _peer_name(device),
            bar=8.0 if device == "cuda" else None,
            note=note,
        ),
        _share_of_roofline(name, timed.ours, flops, n_bytes, roofline, bar=0.6),
    ]


def _embedding_inputs(
    tokens: int, width: int, device: str, dtype: torch.dtype, seed: int
) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((BINS, 1), (BINS,), (BINS, BINS), (BINS,), (BINS, width))
    weights = [torch.randn(shape, generator=generator).mul_(0.1).to(device, dtype) for shape in shapes]
    value_N = torch.rand(tokens, generator=generator).mul_(8).to(device)
    return value_N, [weight.requires_grad_() for weight in weights]


def favor_rows(
    cells: int, device: str, roofline: Roofline | None, *, positions: int = POSITIONS, rounds: int = ROUNDS
) -> list[Row]:
    """Forward and backward over all positions of the published decoder, and the memory a forward pass takes.

    Forward FLOPs 8 C H P M K. Memory traffic: q, k, v read and the result written. Backward: the features of both
    sides again (4 C H P M K) and twice the products of the forward pass with the context (8), and q, k, v, the
    result and its gradient read, three gradients written.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shape = (cells, DECODER_HEADS, positions, HEAD_DIM)
    element = dtype.itemsize * int(np.prod(shape))
    forward_flops = 8.0 * cells * DECODER_HEADS * positions * FEATURES * HEAD_DIM
    peer_op = _compiled(favor_reference.favor_attention, device)
    note = f"{cells} x {positions:,} positions, {str(dtype).removeprefix('torch.')} on {device}"
    rows = []
    parts = {"forward": (forward_flops, 4 * element), "backward": (3 * forward_flops / 2, 8 * element)}
    for part, (flops, n_bytes) in parts.items():

        def make(op: Callable[..., Tensor], part: str = part) -> Callable[[int], Work]:
            def of(seed: int) -> Work:
                leaves, projection_MK = _favor_inputs(shape, device, dtype, seed)
                if part == "forward":
                    return lambda: op(*leaves, projection_MK)
                for leaf in leaves:
                    leaf.requires_grad_()
                out = op(*leaves, projection_MK)
                grad = torch.ones_like(out)
                return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

            return of

        timed = compare_on(
            device,
            rotated(make(kernels.favor_attention), device, n_bytes),
            rotated(make(peer_op), device, n_bytes),
            rounds,
        )
        name = f"favor_attention {part}"
        bar = 3.0 if device == "cuda" else None
        rows += [
            timed.rate_row(name, flops / 1e12, "TFLOP/s", _peer_name(device), bar=bar, note=note),
            _share_of_roofline(name, timed.ours, flops, n_bytes, roofline, bar=0.5),
        ]
    return [*rows, _favor_memory_row((MEMORY_CELLS, *shape[1:]), device, dtype)]


def _favor_inputs(
    shape: tuple[int, ...], device: str, dtype: torch.dtype, seed: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = tuple(torch.randn(shape, generator=generator).to(device, dtype) for _ in "qkv")
    return inputs, torch.randn(FEATURES, HEAD_DIM, generator=generator).to(device)


def _favor_memory_row(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Row:
    """Memory of a forward and backward pass beyond inputs, result and gradients, over one feature map's."""
    what, unit = "favor_attention, extra memory of a training pass", "of one feature map"
    if device != "cuda":
        return Row(what, None, unit, bar=0.1, bar_is="at most", note=NO_GPU)
    (q_CHPK, k_CHPK, v_CHPK), projection_MK = _favor_inputs(shape, device, dtype, 0)
    for leaf in (q_CHPK, k_CHPK, v_CHPK):
        leaf.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = kernels.favor_attention(q_CHPK, k_CHPK, v_CHPK, projection_MK)
    # Gradients as they come: backward() would copy each into the layout of these inputs, which is not the model's.
    grads = torch.autograd.grad(out, (q_CHPK, k_CHPK, v_CHPK), torch.ones_like(out))
    # The result, the gradient given and the three that come out are asked for.
    extra = torch.cuda.max_memory_allocated() - before - (2 + len(grads)) * out.nbytes
    feature_map = out.nbytes // HEAD_DIM * FEATURES
    return Row(
        what,
        extra / feature_map,
        unit,
        bar=0.1,
        bar_is="at most",
        note=f"a map is {feature_map / 1e9:.1f} GB",
    )


def mask_rows(cells: int, device: str, *, n_genes: int = N_GENES, rounds: int = ROUNDS) -> list[Row]:
    """Masking of raw counts, thinning included, against the dense way that scripts use."""
    indptr, gene_ids, counts = (tensor.to(device) for tensor in synthetic_counts(cells, n_genes))
    cell_ids = torch.arange(cells, device=device)
    arguments: dict[str, Any] = {"n_genes": n_genes, "seed": 0, "step": 0}
    timed = compare_on(
        device,
        lambda: kernels.mask_cells(indptr, gene_ids, counts, cell_ids, **arguments),
        lambda: dense_mask(indptr, gene_ids, counts, n_genes),
        rounds,
    )
    note = f"{cells} synthetic cells of real lengths, {n_genes:,} genes, on {device}"
    bar = 50.0 if device == "cuda" else None
    return [
        timed.rate_row("mask_cells", cells, "cells/s", "dense torch, the same objective", bar=bar, note=note)
    ]


def masking_seconds(cells: int, device: str) -> float:
    """Seconds of one call on cells of real lengths."""
    indptr, gene_ids, counts = (tensor.to(device) for tensor in synthetic_counts(cells, N_GENES))
    cell_ids = torch.arange(cells, device=device)
    return median_device_seconds(
        lambda: kernels.mask_cells(indptr, gene_ids, counts, cell_ids, n_genes=N_GENES, seed=0, step=0),
        device,
    )


def _compiled(op: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    """torch.compile of a reference on CUDA; on a CPU the reference itself, which is what runs there."""
    return torch.compile(op, dynamic=False) if device == "cuda" else op


def _peer_name(device: str) -> str:
    return "torch.compile of the reference" if device == "cuda" else "the reference"


def _share_of_roofline(
    name: str, ours: list[float], flops: float, n_bytes: float, roofline: Roofline | None, bar: float
) -> Row:
    what, unit = f"{name}, share of the roofline", "of the least time"
    if roofline is None:
        return Row(what, None, unit, bar=bar, note=NO_GPU)
    least = roofline.seconds(flops, n_bytes)
    note = f"{roofline.flops / 1e12:.0f} TFLOP/s and {roofline.bytes / 1e12:.2f} TB/s measured in this run"
    return Row(what, least / sorted(ours)[len(ours) // 2], unit, bar=bar, note=note)
