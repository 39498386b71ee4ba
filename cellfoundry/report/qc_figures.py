"""Plots of a store's report: barcode ranks, and how counts, genes and mitochondrial share are spread."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import matplotlib.ticker
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cellfoundry_bench.figures import ACCENT, FOURTH, INK, SECOND, STYLE, THIRD, new_axes, shortened, svg
from cellfoundry_data.qc import EDGES, QcHistograms

LINE_COLORS = (ACCENT, SECOND, THIRD, FOURTH, "#d6537a", "#3aa7b5", "#9a8c2e")
QUANTITIES = {
    "total_counts": "counts a cell",
    "n_genes": "genes a cell",
    "mito_share": "mitochondrial share",
}
# 40 bins a decade show every single count of small cells; a bell of this many bins shows the shape.
SMOOTHED_BINS = {"total_counts": 2.0, "n_genes": 2.0, "mito_share": 0.7}

Limits = Mapping[str, float]


def knee_plot(lines: Mapping[str, QcHistograms], limits: Limits) -> str:
    """Counts of the cell at each rank, all cells read, on log axes; one line a source, and for a single source one
    of the cells kept.

    Args:
        lines: label -> histograms; the first line is drawn in the page's ink.
        limits: "min_total" and "max_total", where set, are drawn.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(7.0, 4.2)
        curves = {shortened(label): histograms.total_counts[0] for label, histograms in lines.items()}
        if len(lines) == 1:
            curves = dict(zip(("read", "kept"), next(iter(lines.values())).total_counts, strict=True))
        for (label, cells), color in zip(curves.items(), (INK, *LINE_COLORS), strict=False):
            axes.plot(*barcode_ranks(cells), color=color, linewidth=1.6, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for name in ("min_total", "max_total"):
            if limits.get(name):
                axes.axhline(limits[name], color=INK, linestyle=":", linewidth=1.2)
                axes.annotate(
                    name, (0.01, limits[name]), xycoords=("axes fraction", "data"), fontsize=8, va="bottom"
                )
        axes.set_xlabel("cells, by falling counts")
        axes.set_ylabel("counts")
        _plain_numbers(axes.xaxis, axes.yaxis)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        return svg(figure)


def distributions(rows: Mapping[str, QcHistograms], limits: Limits) -> str:
    """One violin a source and quantity: all cells read, and on them the cells kept.

    A panel in which every cell is 0 (no mitochondrial counts) is left out.

    Args:
        rows: label -> histograms, drawn top to bottom.
        limits: "min_genes", "min_total", "max_total" and "max_mito_share", where set, are drawn.
    """
    shown = [name for name in QUANTITIES if any(getattr(row, name)[0, 1:].any() for row in rows.values())]
    drawn_limits = {
        "total_counts": ("min_total", "max_total"),
        "n_genes": ("min_genes",),
        "mito_share": ("max_mito_share",),
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.1 * max(len(shown), 1), 0.62 * len(rows) + 1.0))
        for column, name in enumerate(shown):
            axes = figure.add_subplot(1, len(shown), column + 1)
            for place, histograms in enumerate(rows.values()):
                _violin(axes, place, name, getattr(histograms, name))
            for limit in drawn_limits[name]:
                if limits.get(limit):  # 0 limits nothing, and has no place on a log axis
                    axes.axvline(limits[limit], color=INK, linestyle=":", linewidth=1.2)
            axes.set_ylim(len(rows) - 0.4, -0.6)
            labels = [shortened(label) for label in rows] if column == 0 else [""] * len(rows)
            axes.set_yticks(range(len(rows)), labels)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            if name == "mito_share":
                axes.set_xlim(left=0)
                axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
            else:
                axes.set_xscale("log")
                _plain_numbers(axes.xaxis)
            axes.set_xlabel(QUANTITIES[name])
        figure.subplots_adjust(wspace=0.12)
        return svg(figure)


def barcode_ranks(cells: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """A curve of (rank, counts), both (points,), from the cells in each bin of total counts.

    Cells of a bin have ranks from one after all cells of higher bins up to their own number; both ends are points, at
    the middle of the bin. Cells with less than one count are left out: a log axis has no place for them.
    """
    edges = EDGES["total_counts"]
    filled = np.flatnonzero(cells[1:])[::-1] + 1
    last = np.cumsum(cells[filled])
    ranks = np.column_stack([last - cells[filled] + 1, last])
    middles = np.repeat(np.sqrt(edges[filled] * np.minimum(edges[filled + 1], edges[filled] * 2)), 2)
    return ranks.ravel(), middles


def median(name: str, cells: npt.NDArray[np.int64]) -> float | None:
    """Median of a quantity from the cells in each of its bins, to a bin's width; None without cells."""
    if not cells.sum():
        return None
    place = int(np.searchsorted(np.cumsum(cells), cells.sum() / 2))
    low, high = EDGES[name][place : place + 2]
    if np.isinf(high):
        return float(low)
    return float((low + high) / 2 if name == "mito_share" or low == 0 else np.sqrt(low * high))


def _violin(axes: Axes, place: int, name: str, counts: npt.NDArray[np.int64]) -> None:
    """Draw cells read and kept around the height ``place``, as wide as 0.84 where most cells read lie."""
    edges = EDGES[name]
    if name == "mito_share":
        first, middles = 0, (edges[:-1] + np.append(edges[1:-1], 1.0)) / 2
    else:
        first, middles = 1, np.sqrt(edges[1:-1] * np.append(edges[2:-1], edges[-2] * 2))
    read, kept = (_smoothed(row[first:], SMOOTHED_BINS[name]) for row in counts)
    if not read.any():
        return
    shown = slice(*_span(read))
    for density, color, alpha in ((read, SECOND, 0.55), (kept, ACCENT, 0.9)):
        half = 0.42 * density[shown] / read.max()
        axes.fill_between(middles[shown], place - half, place + half, color=color, alpha=alpha, linewidth=0)
    middle = median(name, counts[1])
    if middle is not None and (name == "mito_share" or middle >= 1):
        axes.plot([middle, middle], [place - 0.2, place + 0.2], color=INK, linewidth=1.4)


def _smoothed(cells: npt.NDArray[np.int64], width: float) -> npt.NDArray[np.float64]:
    """Cells a bin, averaged over a bell of standard deviation ``width`` bins."""
    reach = int(np.ceil(3 * width))
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    return np.convolve(cells, bell / bell.sum(), mode="full")[reach : reach + len(cells)]


def _span(density: npt.NDArray[np.float64]) -> tuple[int, int]:
    """First and last bin, exclusive, in which a cell can be seen, and one more on each side."""
    seen = np.flatnonzero(density > 1e-3 * density.max())
    return max(0, int(seen[0]) - 1), min(len(density), int(seen[-1]) + 2)


def _plain_numbers(*axes: matplotlib.axis.Axis) -> None:
    """Ticks as 1,000 and 1M rather than as powers."""
    for axis in axes:
        axis.set_major_formatter(matplotlib.ticker.FuncFormatter(_plain))
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _plain(value: float, _: object) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
