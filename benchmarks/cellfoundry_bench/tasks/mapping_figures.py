"""Plots of a mapping's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellfoundry_bench.figures import ACCENT, FOURTH, INK, SECOND, STYLE, new_axes, svg

if TYPE_CHECKING:
    from cellfoundry_tasks.intervals import Interval
    from cellfoundry_tasks.mapping.result import MethodResult

KINDS = {
    "model": ("this model", ACCENT),
    "baseline": ("baseline", SECOND),
    "control": ("random weights", FOURTH),
}


def tradeoff(methods: Sequence[MethodResult]) -> str:
    """Each method's mean of bio conservation against that of batch correction; up and right is better."""
    shown = [method for method in methods if {"Bio conservation", "Batch correction"} <= method.scores.keys()]
    if not shown:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(7.4, 4.6)
        for method in shown:
            x, y = method.scores["Batch correction"], method.scores["Bio conservation"]
            axes.scatter(x, y, s=52, linewidths=0, color=KINDS[method.kind][1])
        _names(axes, shown)
        axes.margins(0.12)
        axes.set_xlabel("batch correction")
        axes.set_ylabel("bio conservation")
        _legend(axes, shown)
        return svg(figure)


def lisi_bars(methods: Sequence[MethodResult]) -> str:
    """cLISI and iLISI of each method, beside each other; 1 is best in both."""
    names = [name for name in ("cLISI", "iLISI") if any(name in method.scores for method in methods)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(names) + 1.8, 0.34 * len(methods) + 1.0))
        all_axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
        for axes, name in zip(all_axes, names, strict=True):
            values = [method.scores.get(name, np.nan) for method in methods]
            _bars(axes, methods, values, [None] * len(methods))
            axes.set_xlim(0, 1.16)
            axes.set_xlabel({"cLISI": "cLISI (labels apart)", "iLISI": "iLISI (batches mixed)"}[name])
        _legend(all_axes[-1], methods)
        return svg(figure)


def transfer_bars(methods: Sequence[MethodResult]) -> str:
    """Accuracy and macro-F1 of carried labels with 95 % intervals."""
    judged = [method for method in methods if method.transfer]
    if not judged:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 0.34 * len(judged) + 1.0))
        for axes, field, label in zip(
            figure.subplots(1, 2, sharey=True),
            ("accuracy", "macro_f1"),
            ("accuracy", "macro-F1"),
            strict=True,
        ):
            found: list[Interval] = [getattr(method.transfer, field) for method in judged]
            _bars(axes, judged, [value.mean for value in found], found)
            axes.set_xlim(0, 1.16)
            axes.set_xlabel(label)
        _legend(axes, judged)
        return svg(figure)


def _bars(
    axes: Axes,
    methods: Sequence[MethodResult],
    values: Sequence[float],
    intervals: Sequence[Interval | None],
) -> None:
    for place, (method, value, found) in enumerate(zip(methods, values, intervals, strict=True)):
        end = 0.0
        if np.isfinite(value):
            axes.barh(place, value, height=0.66, color=KINDS[method.kind][1])
            end = value
        if found and found.low is not None and found.high is not None:
            low, high = max(found.low, 0.0), min(found.high, 1.0)
            axes.plot([low, high], [place, place], color=INK, linewidth=1.4)
            end = max(end, high)
        axes.text(
            end + 0.015, place, f"{value:.3f}" if np.isfinite(value) else "none", va="center", fontsize=8
        )
    axes.set_yticks(range(len(methods)), [method.name for method in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])


def _names(axes: Axes, methods: Sequence[MethodResult]) -> None:
    """Names beside the points, those of close neighbours moved apart."""
    points = sorted((m.scores["Bio conservation"], m.scores["Batch correction"], m.name) for m in methods)
    spread = max(max(p[0] for p in points) - min(p[0] for p in points), 0.01)
    last = -np.inf
    for y, x, name in points:
        text_y = max(y, last + 0.055 * spread)
        last = text_y
        axes.annotate(name, (x, text_y), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8)


def _legend(axes: Axes, methods: Sequence[MethodResult]) -> None:
    there = {method.kind for method in methods}
    handles = [_dot(colour, text) for kind, (text, colour) in KINDS.items() if kind in there]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9)


def _dot(colour: str, text: str) -> Line2D:
    return Line2D([], [], marker="o", linestyle="", color=colour, markersize=6, label=text)
