"""Value embedding, FAVOR+ and masking against torch, and against the roofline of the device.

Shape legend: N tokens, D width, B bins, C cells, H heads, P positions, K head dim, M features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

import cellfoundry_kernels as kernels
from cellfoundry_bench.kernels.bars import not_measured, share_of_roofline
from cellfoundry_bench.kernels.dense_masking import dense_mask
from cellfoundry_bench.kernels.inputs import dtype_on, embedding_weights, expression_values, split_heads
from cellfoundry_bench.kernels.timing import (
    ROUNDS,
    Cost,
    Roofline,
    Work,
    compare_on,
    median_device_seconds,
    rotated,
)
from cellfoundry_bench.ragged import counts_of_lengths, real_lengths
from cellfoundry_bench.results import Row
from cellfoundry_kernels.embedding import reference as embedding_reference
from cellfoundry_kernels.favor import reference as favor_reference

Op = Callable[..., Tensor]
WIDTH, BINS = 768, 100
POSITIONS, N_GENES, DECODER_HEADS, HEAD_DIM, FEATURES = 19_266, 19_264, 8, 64, 266
PARTS = ("forward", "backward")
MEMORY_CELLS = 64
"""Of the memory row, a published batch: partial sums take as much for fewer cells, feature maps less."""
COMPILED = "torch.compile of the reference"
DENSE = "dense torch, the same objective"


def value_embedding_rows(
    tokens: int, device: str, roofline: Roofline | None, *, width: int = WIDTH, rounds: int = ROUNDS
) -> list[Row]:
    """Forward and backward in one: against torch.compile of the reference, and of the roofline."""
    return _rows_against_compiled(
        "value_embedding forward and backward",
        partial(embedding_work, tokens=tokens, device=device, width=width),
        (kernels.value_embedding, embedding_reference.value_embedding),
        embedding_cost(tokens, width, dtype_on(device).itemsize),
        (8.0, 0.6),
        device,
        roofline,
        rounds,
        f"{tokens:,} values, {BINS} bins, width {width}, {_name(dtype_on(device))} on {device}",
    )


def embedding_cost(tokens: int, width: int, itemsize: int) -> Cost:
    """Forward 2 N B (B + D) FLOPs, backward twice that and the recomputed forward of the bins.

    Memory traffic: the output is written and its gradient read, (N, D) each; the value is 4 bytes.
    """
    flops = 2.0 * tokens * BINS * (3 * (BINS + width) + BINS)
    return Cost(flops, tokens * (2 * width * itemsize + 8))


def embedding_work(op: Op, tokens: int, device: str, width: int = WIDTH, seed: int = 0) -> Work:
    """Forward and backward of random values, on inputs of its own."""
    generator, dtype = Generator().manual_seed(seed), dtype_on(device)
    weights = embedding_weights(BINS, width, dtype, device, generator)
    weights = [weight.requires_grad_() for weight in weights]
    value_N = expression_values(tokens, device, generator)
    grad_ND = torch.ones(tokens, width, device=device, dtype=dtype)
    return lambda: torch.autograd.grad(op(value_N, *weights, alpha=1.0), weights, grad_ND)


def favor_rows(
    cells: int, device: str, roofline: Roofline | None, *, positions: int = POSITIONS, rounds: int = ROUNDS
) -> list[Row]:
    """Forward and backward over all positions of the published decoder, and the memory a training pass takes."""
    note = f"{cells} x {positions:,} positions, {_name(dtype_on(device))} on {device}"
    rows = []
    for part in PARTS:
        rows += _rows_against_compiled(
            f"favor_attention {part}",
            partial(favor_work, part=part, cells=cells, positions=positions, device=device),
            (kernels.favor_attention, favor_reference.favor_attention),
            favor_cost(part, cells, positions, dtype_on(device).itemsize),
            (3.0, 0.5),
            device,
            roofline,
            rounds,
            note,
        )
    return [*rows, _favor_memory_row(MEMORY_CELLS, positions, device)]


def favor_cost(part: str, cells: int, positions: int, itemsize: int) -> Cost:
    """Forward 4 products of 2 M K FLOPs a row (of C H P), backward 8: what the kernels need, not what they do.

    Backward: features of both sides again (2), gradients of both products with the context (4), and of queries
    and keys through the projection (2). Memory traffic: q, k, v read and the result written; backward reads
    those and the result's gradient and writes three.
    """
    rows = float(cells * DECODER_HEADS * positions)
    product, element = rows * 2 * FEATURES * HEAD_DIM, rows * HEAD_DIM * itemsize
    return Cost(4 * product, 4 * element) if part == "forward" else Cost(8 * product, 8 * element)


def favor_work(op: Op, part: str, cells: int, positions: int, device: str, seed: int = 0) -> Work:
    """One pass at the published heads and features, on inputs of its own."""
    leaves, projection_MK = _favor_inputs(cells, positions, device, seed)
    if part == "forward":
        return lambda: op(*leaves, projection_MK)
    for leaf in leaves:
        leaf.requires_grad_()
    out_CHPK = op(*leaves, projection_MK)
    grad_CHPK = torch.ones_like(out_CHPK)
    return lambda: torch.autograd.grad(out_CHPK, leaves, grad_CHPK, retain_graph=True)


def _favor_inputs(cells: int, positions: int, device: str, seed: int) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values, and the projection."""
    generator, dtype = Generator().manual_seed(seed), dtype_on(device)
    shape = (cells, DECODER_HEADS, positions, HEAD_DIM)
    leaves = [split_heads(*shape, dtype, device, generator) for _ in "qkv"]
    return leaves, torch.randn(FEATURES, HEAD_DIM, generator=generator).to(device)


def _favor_memory_row(cells: int, positions: int, device: str) -> Row:
    """Memory of a forward and backward pass beyond inputs, result and gradients, over one feature map's."""
    row = not_measured(
        "favor_attention, extra memory of a training pass", "of one feature map", bar=0.1, bar_is="at most"
    )
    if device != "cuda":
        return row
    feature_map = cells * DECODER_HEADS * positions * FEATURES * dtype_on(device).itemsize
    note = f"a map is {feature_map / 1e9:.1f} GB"
    return replace(row, value=_extra_memory(cells, positions, device) / feature_map, note=note)


def _extra_memory(cells: int, positions: int, device: str) -> int:
    """Bytes at the peak of a training pass, without what it is given and gives back."""
    leaves, projection_MK = _favor_inputs(cells, positions, device, 0)
    q_CHPK, k_CHPK, v_CHPK = (leaf.requires_grad_() for leaf in leaves)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out_CHPK = kernels.favor_attention(q_CHPK, k_CHPK, v_CHPK, projection_MK)
    grads = torch.autograd.grad(out_CHPK, leaves, torch.ones_like(out_CHPK))
    # The result, the gradient given and the three that come out are asked for.
    return torch.cuda.max_memory_allocated() - before - (2 + len(grads)) * out_CHPK.nbytes


def mask_rows(cells: int, device: str, *, n_genes: int = N_GENES, rounds: int = ROUNDS) -> list[Row]:
    """Masking of raw counts, thinning included, against the dense way that scripts use."""
    lengths = np.minimum(real_lengths(cells), n_genes)
    ours, dense = mask_work(lengths, device, n_genes), _dense_work(lengths, device, n_genes)
    timed = compare_on(device, ours, dense, rounds)
    note = f"{cells} synthetic cells of real lengths, {n_genes:,} genes, on {device}"
    bar = 50.0
    if device == "cuda":
        return [timed.rate_row("mask_cells", cells, "cells/s", DENSE, bar=bar, note=note)]
    return [
        timed.rate_row("mask_cells", cells, "cells/s", DENSE, note=note),
        not_measured("mask_cells", "cells/s", peer=DENSE, bar=bar),
    ]


def mask_work(lengths: npt.NDArray[np.int64], device: str, n_genes: int = N_GENES) -> Work:
    """``mask_cells`` on synthetic cells of so many genes."""
    indptr, gene_ids, counts = (x.to(device) for x in counts_of_lengths(lengths, n_genes))
    cell_ids = torch.arange(len(lengths), device=device)
    arguments: dict[str, Any] = {"n_genes": n_genes, "seed": 0, "step": 0}
    return lambda: kernels.mask_cells(indptr, gene_ids, counts, cell_ids, **arguments)


def mask_cost(lengths: npt.NDArray[np.int64], n_genes: int = N_GENES) -> Cost:
    """Memory traffic: gene ids (8 bytes) and counts (4) read, tokens and targets written once; no FLOPs."""
    indptr, gene_ids, counts = counts_of_lengths(lengths, n_genes)
    masked = kernels.mask_cells(
        indptr, gene_ids, counts, torch.arange(len(lengths)), n_genes=n_genes, seed=0, step=0
    )
    written = [x for x in vars(masked).values() if isinstance(x, Tensor)]
    return Cost(0.0, sum(x.nbytes for x in (indptr, gene_ids, counts, *written)))


def masking_seconds(cells: int, device: str) -> float:
    """Seconds of one call on cells of real lengths."""
    return median_device_seconds(mask_work(real_lengths(cells), device), device)


def _dense_work(lengths: npt.NDArray[np.int64], device: str, n_genes: int) -> Work:
    indptr, gene_ids, counts = (x.to(device) for x in counts_of_lengths(lengths, n_genes))
    return lambda: dense_mask(indptr, gene_ids, counts, n_genes)


def _rows_against_compiled(
    name: str,
    work: Callable[..., Work],
    ops: tuple[Op, Op],
    cost: Cost,
    bars: tuple[float, float],
    device: str,
    roofline: Roofline | None,
    rounds: int,
    note: str,
) -> list[Row]:
    """Our rate beside the compiled reference's, and the share of the roofline; ``bars`` are theirs.

    ``work`` makes what is timed of one of ``ops`` (ours, the reference) and a seed. Without a GPU what we call is the
    reference itself, so its rate stands alone.
    """
    (op, reference), (ratio, share) = ops, bars
    ours = rotated(lambda seed: work(op, seed=seed), device, cost.bytes)
    amount, unit = cost.flops / 1e12, "TFLOP/s"
    if roofline is None:
        return [
            Row(name, amount / median_device_seconds(ours, device, rounds), unit, note=note),
            not_measured(name, unit, peer=COMPILED, bar=ratio),
            share_of_roofline(name, [], cost, None, share),
        ]
    compiled = torch.compile(reference, dynamic=False)
    peer = rotated(lambda seed: work(compiled, seed=seed), device, cost.bytes)
    timed = compare_on(device, ours, peer, rounds)
    return [
        timed.rate_row(name, amount, unit, COMPILED, bar=ratio, note=note),
        share_of_roofline(name, timed.ours, cost, roofline, share),
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
