"""Plots of a fine-tuning run's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from cellfoundry.report.qc_figures import shortened
from cellfoundry_bench.figures import ACCENT, INK, STYLE, THIRD, new_axes, svg

if TYPE_CHECKING:
    from cellfoundry_training.finetune.fitting import Epoch

# From nothing to the accent: the page's own background shows where a cell of the matrix is empty.
SHARES = LinearSegmentedColormap.from_list("shares", [(*to_rgb(ACCENT), 0.0), (*to_rgb(ACCENT), 0.9)])
NUMBERED_CLASSES = 30
"""Up to so many classes every field of the matrix has its number of cells; more would not be legible."""
POINTS = 5_000


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


def predicted_against_true(
    true: npt.NDArray[np.floating], predicted: npt.NDArray[np.floating], label: str
) -> str:
    """One point a held-out cell and the line of equal numbers; of very many cells, evenly chosen ones."""
    chosen = np.unique(np.linspace(0, len(true) - 1, POINTS).astype(np.int64))
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(5.6, 5.0)
        axes.scatter(true[chosen], predicted[chosen], s=16, linewidths=0, color=ACCENT, alpha=0.6)
        ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
        axes.plot(ends, ends, color=INK, linestyle=":", linewidth=1.2)
        axes.set_xlabel(label)
        axes.set_ylabel("predicted")
        return svg(figure)


def validation_curve(epochs: Sequence[Epoch]) -> str:
    """Loss on training and validation cells over epochs."""
    numbers = [epoch.epoch for epoch in epochs]
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(7.2, 3.0)
        marker = "o" if len(numbers) <= 30 else None
        axes.plot(
            numbers,
            [epoch.train_loss for epoch in epochs],
            color=ACCENT,
            marker=marker,
            markersize=4,
            label="training",
        )
        axes.plot(
            numbers,
            [epoch.validation_loss for epoch in epochs],
            color=THIRD,
            marker=marker,
            markersize=4,
            label="validation",
        )
        axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return svg(figure)
