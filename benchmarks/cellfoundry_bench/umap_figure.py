"""UMAPs of the same cells side by side, coloured by group."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellfoundry_bench.figures import STYLE, svg

# Of middle lightness, so that points stand out on white and on near-black; again from the start for more groups.
PALETTE = (
    *("#3b82f6", "#e0862b", "#22a06b", "#d6455d", "#a36fd0"),
    *("#0fa3b1", "#b08d1e", "#e06bb3", "#7a8b99", "#84a83a"),
    *("#6a5acd", "#c0653f", "#2e9e9e", "#b34f8e", "#5f9e4c"),
    *("#8f7a5b", "#4f86a8", "#cf7f7f", "#998cc2", "#a0a04a"),
)
NO_GROUP = "#8a949e"
MOST_NAMED = 24
PANELS_A_ROW = 3
PIXELS_PER_INCH = 160


def umap_panels(
    places: Mapping[str, npt.NDArray[np.float32]], groups: npt.NDArray[np.str_], heading: str
) -> str:
    """Panels of the same cells with one legend, drawn as images since points are thousands.

    Args:
        places: title -> UMAP coordinates, float32 (cells, 2).
        groups: of each cell, (cells,), "" where it has none; 24 of them are named.
        heading: what the groups are.
    """
    names = sorted(set(groups.tolist()) - {""})
    colour_of = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(names)} | {"": NO_GROUP}
    order = np.random.default_rng(0).permutation(len(groups))  # so that no group covers the others
    colours = [colour_of[group] for group in groups[order].tolist()]
    rows = -(-len(places) // PANELS_A_ROW)
    columns = -(-len(places) // rows)
    with matplotlib.rc_context({**STYLE, "figure.dpi": PIXELS_PER_INCH, "savefig.dpi": PIXELS_PER_INCH}):
        figure = Figure(figsize=(3.1 * columns + 1.9, 3.3 * rows))
        for number, (title, xy) in enumerate(places.items(), 1):
            axes = figure.add_subplot(rows, columns, number)
            size = float(np.clip(9000 / len(groups), 1.5, 14))
            x, y = xy[order].T
            axes.scatter(x, y, s=size, c=colours, linewidths=0, alpha=0.8, rasterized=True)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(title, fontsize=10)
        handles = [_dot(colour_of[name], name) for name in names[:MOST_NAMED]]
        if len(names) > MOST_NAMED:
            handles.append(_dot("none", f"and {len(names) - MOST_NAMED} more"))
        if "" in groups:
            handles.append(_dot(NO_GROUP, "no label"))
        figure.legend(
            handles=handles, title=heading, loc="center left", bbox_to_anchor=(0.91, 0.5), fontsize=8
        )
        return svg(figure)


def _dot(colour: str, text: str) -> Line2D:
    return Line2D([], [], marker="o", linestyle="", color=colour, markersize=6, label=text)
