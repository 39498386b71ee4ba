"""Plots as inline SVG whose text and lines take the page's colour, so that they read in both themes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Placeholder colour that becomes `currentColor` in the SVG: dark or light by theme.
INK = "#010203"
# Blue, orange, green, purple of middle lightness: they stand out on white and on near-black.
ACCENT, SECOND, THIRD, FOURTH = "#3b82f6", "#e0862b", "#22a06b", "#a36fd0"
MOST_TICKS = 12
LEVEL_STYLES = ("--", ":", "-.", (0, (8, 2)))
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=[ACCENT, SECOND, THIRD, FOURTH]),
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.hashsalt": "cellfoundry",
}


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot of ``width`` x ``height`` inches; call it and what draws within ``rc_context(STYLE)``."""
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def svg(figure: Figure) -> str:
    """The figure as an inline ``<svg>`` element with transparent background and theme-following ink."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def shortened(label: str, limit: int = 28) -> str:
    """A label that fits beside a plot: its middle goes."""
    return label if len(label) <= limit else f"{label[: limit // 2 - 1]}…{label[-limit // 2 :]}"


def ratio_chart(rows: Sequence[dict[str, Any]]) -> str:
    """Bars of ``ratio`` on a log2 axis from 1 (as fast as the peer), and a dashed tick at each row's bar.

    ``rows`` are rows of a result file; those without a ratio are left out. Empty text if none has one.
    """
    rows = [row for row in rows if row["ratio"] is not None]
    if not rows:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(7.2, 0.42 * len(rows) + 0.9)
        for place, row in enumerate(rows):
            ratio = row["ratio"]
            axes.barh(place, ratio - 1.0, left=1.0, height=0.6, color=ACCENT if ratio >= 1 else SECOND)
            axes.text(max(ratio, 1.0) * 1.04, place, f"{ratio:.2f}x", va="center", fontsize=9)
            for bar in (row["bar"] or {}).values():
                axes.plot([bar, bar], [place - 0.45, place + 0.45], color=INK, linestyle=":", linewidth=2)
        axes.set_yticks(range(len(rows)), [row["what"] for row in rows])
        axes.invert_yaxis()
        axes.set_xscale("log", base=2)
        bounds = [row["ratio"] for row in rows] + [bar for row in rows for bar in (row["bar"] or {}).values()]
        # At least from half to four times, in whole octaves, with room for the numbers at the bars' ends.
        low, high = min(-1, math.floor(math.log2(min(bounds)))), max(2, math.ceil(math.log2(max(bounds))))
        axes.set_xlim(2.0**low, 2.0**high * 1.3)
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}x"))
        axes.axvline(1.0, color=INK, linewidth=1)
        axes.set_xlabel("times better than the peer (dotted: the bar)")
        return svg(figure)


def line_chart(curve: dict[str, Any]) -> str:
    """Lines of one ``curves`` entry of a result file, and its levels as dashed lines across.

    A few x are the ticks, on a log2 axis when they span more than a factor of 8; many are a course, such as of a
    training run, and have ordinary ticks.
    """
    xs = [x for line in curve["lines"].values() for x, _ in line]
    if not xs:
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(7.2, 3.2)
        few = len(set(xs)) <= MOST_TICKS
        for name, line in curve["lines"].items():
            marker = "o" if few else None
            axes.plot([x for x, _ in line], [y for _, y in line], marker=marker, markersize=4, label=name)
        for place, (name, level) in enumerate(curve.get("levels", {}).items()):
            axes.axhline(level, color=INK, linestyle=LEVEL_STYLES[place % 4], linewidth=1.3, label=name)
        if few:
            if min(xs) > 0 and max(xs) / min(xs) > 8:
                axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(set(xs)), [_tick(x) for x in sorted(set(xs))], minor=False)
            axes.minorticks_off()
        else:
            axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: _tick(x)))
        axes.set_ylim(bottom=0)
        axes.set_title(curve["title"], fontsize=10, loc="left")
        axes.set_xlabel(curve["x_label"])
        axes.set_ylabel(curve["y_label"])
        if few:
            axes.legend()
        else:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return svg(figure)


def _tick(x: float) -> str:
    """Lengths and steps whole, with separators; shares as they are."""
    return f"{x:,.0f}" if x == int(x) else f"{x:g}"
