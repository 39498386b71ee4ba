"""Confusion matrix of a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from cellfoundry_bench.figures import ACCENT, STYLE, new_axes, shortened, svg

# From nothing to the accent: the page's own background shows where a cell of the matrix is empty.
SHARES = LinearSegmentedColormap.from_list("shares", [(*to_rgb(ACCENT), 0.0), (*to_rgb(ACCENT), 0.9)])
NUMBERED_CLASSES = 30
"""Up to so many classes every field of the matrix has its number of cells; more would not be legible."""


def confusion_matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Cells of each true class (rows) by predicted class (columns), shaded by their share of the row."""
    cells_KK = np.asarray(confusion)
    share_KK = cells_KK / np.maximum(cells_KK.sum(1, keepdims=True), 1)
    size = min(12.0, 1.8 + 0.42 * len(classes))
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(size + 0.6, size)
        axes.pcolormesh(share_KK, cmap=SHARES, vmin=0.0, vmax=1.0)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        if len(classes) <= NUMBERED_CLASSES:
            for row, column in zip(*np.nonzero(cells_KK), strict=True):
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    f"{cells_KK[row, column]:,}",
                    ha="center",
                    va="center",
                    fontsize=8,
                )
        names, places = [shortened(name) for name in classes], np.arange(len(classes)) + 0.5
        fontsize = 9 if len(classes) <= NUMBERED_CLASSES else 5
        axes.set_xticks(places, names, rotation=90, fontsize=fontsize)
        axes.set_yticks(places, names, fontsize=fontsize)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(True)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        return svg(figure)
