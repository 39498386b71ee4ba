"""Plots of a fine-tuning run's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import numpy.typing as npt

from cellfoundry_bench.figures import ACCENT, INK, STYLE, THIRD, new_axes, svg

if TYPE_CHECKING:
    from cellfoundry_training.finetune.fitting import Epoch

POINTS = 5_000


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
