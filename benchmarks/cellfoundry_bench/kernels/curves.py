"""TFLOP/s and GB/s of each kernel over length, on any device: short enough lengths on a CPU to take seconds.

FLOPs are those the result needs, and bytes those of inputs and results, each once: both are rates of what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

import cellfoundry_kernels as kernels
from cellfoundry_bench.kernels.attention import HEAD_DIM, HEADS, PEERS, attention_cost, attention_work, ours
from cellfoundry_bench.kernels.inputs import dtype_on
from cellfoundry_bench.kernels.ops import (
    PARTS,
    WIDTH,
    embedding_cost,
    embedding_work,
    favor_cost,
    favor_work,
    mask_cost,
    mask_work,
)
from cellfoundry_bench.kernels.timing import Cost, Roofline, Work, median_device_seconds
from cellfoundry_bench.results import Curve

Measured = list[tuple[float, Cost, float]]
"""Length, cost and seconds, one after another."""
ROUNDS = 3


def all_curves(device: str, roofline: Roofline | None) -> list[Curve]:
    """Every kernel's curves."""
    if device == "cpu":
        return [
            *attention_curves((256, 512, 1024, 2048), device, tokens=4096, heads=4),
            *embedding_curves((1000, 4000, 16_000), device),
            *favor_curves((512, 1024, 2048, 4096), device),
            *mask_curves((250, 500, 1000, 2000, 4000), device, cells=8),
        ]
    return [
        *attention_curves((256, 512, 1024, 2048, 4096, 8192, 19_266), device, roofline=roofline),
        *embedding_curves((4000, 16_000, 64_000, 256_000, 1_024_000), device, roofline),
        *favor_curves((512, 1024, 2048, 4096, 8192, 19_266), device, roofline),
        *mask_curves((250, 500, 1000, 2000, 4000, 8000), device, roofline=roofline),
    ]


def attention_curves(
    lengths: Sequence[int],
    device: str,
    *,
    tokens: int = 32_768,
    heads: int = HEADS,
    roofline: Roofline | None = None,
) -> list[Curve]:
    """Both passes over the length of a cell, about ``tokens`` a batch; beside the packed peers on CUDA."""
    sides = {"ours": ours} | (PEERS if device == "cuda" else {})
    curves = []
    for part in PARTS:
        lines: dict[str, Measured] = {name: [] for name in sides}
        for length in lengths:
            cells = np.full(max(tokens // length, 1), length)
            cost = attention_cost(part, cells, heads, dtype_on(device).itemsize)
            for name, side in sides.items():
                lines[name].append(
                    _point(length, cost, attention_work(side, part, cells, device, heads), device)
                )
        title = f"varlen_attention {part}, head dim {HEAD_DIM}, {device}"
        curves += [
            _curve(title, "tokens a cell", unit, lines, roofline) for unit in ("useful TFLOP/s", "GB/s")
        ]
    return curves


def embedding_curves(tokens: Sequence[int], device: str, roofline: Roofline | None = None) -> list[Curve]:
    """Forward and backward over the number of values."""

    def measured(n: int) -> tuple[Cost, Work]:
        cost = embedding_cost(n, WIDTH, dtype_on(device).itemsize)
        return cost, embedding_work(kernels.value_embedding, n, device)

    title = f"value_embedding forward and backward, width {WIDTH}, {device}"
    return _curves_of_ours(title, "values", tokens, measured, device, roofline)


def favor_curves(positions: Sequence[int], device: str, roofline: Roofline | None = None) -> list[Curve]:
    """Both passes over the positions of a cell: one cell on a CPU, eight on a GPU."""
    cells, curves = 8 if device == "cuda" else 1, []
    for part in PARTS:

        def measured(n: int, part: str = part) -> tuple[Cost, Work]:
            cost = favor_cost(part, cells, n, dtype_on(device).itemsize)
            return cost, favor_work(kernels.favor_attention, part, cells, n, device)

        title = f"favor_attention {part}, {cells} cells, {device}"
        curves += _curves_of_ours(title, "positions a cell", positions, measured, device, roofline)
    return curves


def mask_curves(
    genes: Sequence[int], device: str, *, cells: int = 256, roofline: Roofline | None = None
) -> list[Curve]:
    """Over the non-zero genes of a cell; masking has no FLOPs to speak of."""

    def measured(n: int) -> tuple[Cost, Work]:
        lengths = np.full(cells, n)
        return mask_cost(lengths), mask_work(lengths, device)

    title = f"mask_cells, {cells} cells, {device}"
    return _curves_of_ours(title, "genes a cell", genes, measured, device, roofline, units=("GB/s",))


def _curves_of_ours(
    title: str,
    x_label: str,
    lengths: Sequence[int],
    measured: Callable[[int], tuple[Cost, Work]],
    device: str,
    roofline: Roofline | None,
    units: tuple[str, ...] = ("TFLOP/s", "GB/s"),
) -> list[Curve]:
    points = [_point(length, *measured(length), device) for length in lengths]
    return [_curve(title, x_label, unit, {"ours": points}, roofline) for unit in units]


def _point(length: int, cost: Cost, work: Work, device: str) -> tuple[float, Cost, float]:
    return float(length), cost, median_device_seconds(work, device, ROUNDS)


def _curve(
    title: str, x_label: str, unit: str, lines: dict[str, Measured], roofline: Roofline | None
) -> Curve:
    """One rate of the measured points, below what the device reached at most."""
    is_bytes = unit == "GB/s"

    def rate(cost: Cost, seconds: float) -> float:
        return cost.bytes / seconds / 1e9 if is_bytes else cost.flops / seconds / 1e12

    levels = {}
    if roofline is not None:
        of_copy, of_product = roofline.bytes / 1e9, roofline.flops / 1e12
        levels = {"copy": of_copy} if is_bytes else {"bf16 matrix product": of_product}
    rates = {name: [(x, rate(cost, spent)) for x, cost, spent in line] for name, line in lines.items()}
    return Curve(title, x_label, unit, rates, levels)
