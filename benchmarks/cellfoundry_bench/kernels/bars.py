"""Rows of what only a GPU measures: named with their bars where there is none, and as shares of its roofline."""

from __future__ import annotations

from statistics import median
from typing import Literal

from cellfoundry_bench.kernels.timing import Cost, Roofline
from cellfoundry_bench.results import Row

NO_GPU = "not measured: this machine has no NVIDIA GPU"


def not_measured(
    what: str,
    unit: str,
    *,
    peer: str | None = None,
    bar: float | None = None,
    bar_is: Literal["at least", "at most"] = "at least",
) -> Row:
    """The row of a figure that takes a GPU, on a machine without one."""
    return Row(what, None, unit, peer, bar=bar, bar_is=bar_is, note=NO_GPU)


def share_of_roofline(name: str, ours: list[float], cost: Cost, roofline: Roofline | None, bar: float) -> Row:
    """The least time that the device needs for ``cost`` over the median of ``ours``."""
    what, unit = f"{name}, share of the roofline", "of the least time"
    if roofline is None:
        return not_measured(what, unit, bar=bar)
    note = f"{roofline.flops / 1e12:.0f} TFLOP/s and {roofline.bytes / 1e12:.2f} TB/s measured in this run"
    return Row(what, roofline.seconds(cost) / median(ours), unit, bar=bar, note=note)
