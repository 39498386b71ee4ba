"""Plots of the read-depth enhancement's report."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellfoundry_bench.figures import ACCENT, FOURTH, INK, SECOND, STYLE, THIRD, new_axes, svg
from cellfoundry_tasks.intervals import Interval

Points = Sequence[tuple[float, Interval]]
"""(x, score) from left to right."""

# The model and its peers in colours, what needs no cells or no learning in ink.
LINES: dict[str, dict[str, Any]] = {
    "model": {"color": ACCENT, "linewidth": 2.4},
    "model, expression": {"color": ACCENT, "linewidth": 1.6, "linestyle": (0, (5, 1, 1, 1))},
    "random weights": {"color": ACCENT, "linewidth": 1.2, "linestyle": ":"},
    "kNN smoothing": {"color": SECOND, "linewidth": 1.6},
    "kNN smoothing, log of mean": {"color": SECOND, "linewidth": 1.6},
    "kNN smoothing, mean of logs": {"color": SECOND, "linewidth": 1.6, "linestyle": "--"},
    "MAGIC": {"color": THIRD, "linewidth": 1.6},
    "scVI": {"color": FOURTH, "linewidth": 1.6},
    "thinned counts": {"color": INK, "linewidth": 1.2},
    "gene means": {"color": INK, "linewidth": 1.2, "linestyle": "--"},
    "one molecule of each gene": {"color": INK, "linewidth": 1.2, "linestyle": ":"},
    "full depth": {"color": INK, "linewidth": 1.2, "linestyle": "-."},
}
UNSCALED = {"random weights", "one molecule of each gene"}
"""May leave the plot: their errors are such that the others' would be one line."""
TITLE_WIDTH = 34


def by_depth(lines: Mapping[str, Points], label: str) -> str:
    """A score against the share of molecules kept, of every method with its 95 % interval over cells."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(2.75, 2.3)
        depths = sorted({depth for points in lines.values() for depth, _ in points})
        for name, points in lines.items():
            _line(axes, name, points)
        axes.set_xscale("log")
        axes.set_xticks(depths, [f"{100 * depth:g} %" for depth in depths])
        axes.minorticks_off()
        _bound(
            axes,
            [value for name, points in lines.items() if name not in UNSCALED for value in _values(points)],
        )
        axes.set_xlabel("molecules kept")
        axes.set_title(textwrap.fill(label, TITLE_WIDTH), fontsize=9, loc="left")
        return svg(figure)


def by_fold(lines: Mapping[str, Points], levels: Mapping[str, float], label: str) -> str:
    """A cluster score against the fold T/S, and the levels of methods that have none."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(2.75, 2.3)
        for name, points in lines.items():
            _line(axes, name, points)
        for name, level in levels.items():
            axes.axhline(level, **LINES[name])
        axes.set_xlabel("T/S, times the depth")
        axes.set_title(textwrap.fill(label, TITLE_WIDTH), fontsize=9, loc="left")
        return svg(figure)


def legend(names: Sequence[str]) -> str:
    """What the lines of all plots are, once."""
    with matplotlib.rc_context(STYLE):
        columns = min(4, len(names))
        figure = Figure(figsize=(8.4, 0.26 * -(-len(names) // columns)))
        handles = [Line2D([], [], **LINES[name], label=name) for name in names]
        figure.legend(handles=handles, loc="center", ncols=columns, fontsize=9, handlelength=2.8)
        return svg(figure)


def _line(axes: Any, name: str, points: Points) -> None:
    xs = [x for x, _ in points]
    axes.plot(xs, [score.mean for _, score in points], marker="o", markersize=3.5, **LINES[name])
    for x, score in points:
        if score.low is not None and score.high is not None:
            axes.plot([x, x], [score.low, score.high], color=LINES[name]["color"], linewidth=1.0)


def _values(points: Points) -> list[float]:
    return [score.mean for _, score in points]


def _bound(axes: Any, values: Sequence[float]) -> None:
    """Room for all of ``values`` and a little more."""
    if values:
        room = 0.08 * (max(values) - min(values) or 1.0)
        axes.set_ylim(min(values) - room, max(values) + room)
