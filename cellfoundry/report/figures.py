"""Plots of the quickstart's report; the learning curve is also that of a run's."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt

from cellfoundry_bench.figures import ACCENT, SECOND, STYLE, THIRD, new_axes, svg

# A batch can be two cells, so single steps say little.
SMOOTHED_STEPS = 25
# More points than pixels only make the page heavy.
LOSS_POINTS = 2000


def binned(xs: Sequence[float], ys: Sequence[float], points: int) -> tuple[list[float], list[float]]:
    """Means of consecutive pairs in equal spans where there are more than ``points`` of them."""
    size = -(-len(xs) // points) or 1
    starts = range(0, len(xs), size)
    return [float(np.mean(xs[at : at + size])) for at in starts], [
        float(np.mean(ys[at : at + size])) for at in starts
    ]


def loss_curve(steps: list[dict[str, float]], evaluations: list[dict[str, float]]) -> str:
    """Training loss a step, held-out loss and the gene-mean baseline over optimizer steps; at least one step."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(9.0, 3.6)
        numbers, losses = [line["step"] for line in steps], [line["loss"] for line in steps]
        axes.plot(
            *binned(numbers, losses, LOSS_POINTS),
            color=ACCENT,
            alpha=0.25,
            linewidth=0.8,
            label="training batch",
        )
        if len(losses) > SMOOTHED_STEPS:
            window = max(SMOOTHED_STEPS, len(losses) // 100)
            mean = np.convolve(losses, np.full(window, 1 / window), mode="valid")
            smooth = binned(numbers[window - 1 :], mean.tolist(), LOSS_POINTS)
            axes.plot(*smooth, color=ACCENT, label=f"its mean over {window} steps")
        top = float(np.quantile(losses, 0.98))
        measured = [line for line in evaluations if line["heldout_loss"] is not None]
        if measured:
            axes.plot(
                [line["step"] for line in measured],
                [line["heldout_loss"] for line in measured],
                color=THIRD,
                marker="o",
                markersize=5,
                label="held-out cells",
            )
            mean_loss = measured[-1]["gene_mean_loss"]
            axes.axhline(mean_loss, color=SECOND, linestyle="--", label="predicting each gene's mean")
            top = max(top, mean_loss)
        axes.set_ylim(0, top * 1.15)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("masked MSE, log1p per 10k")
        axes.legend(loc="upper right")
        return svg(figure)


def umap_scatter(points: npt.NDArray[np.float32], labels: Sequence[str]) -> str:
    """UMAP coordinates, (cells, 2), coloured by cell type; the legend lists types by frequency."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(7.0, 5.0)
        names, counts = np.unique(np.asarray(labels), return_counts=True)
        palette = matplotlib.colormaps["tab20"]
        for rank, index in enumerate(np.argsort(-counts)):
            chosen = np.asarray(labels) == names[index]
            axes.scatter(
                points[chosen, 0],
                points[chosen, 1],
                s=7,
                linewidths=0,
                color=palette(rank % 20),
                label=f"{names[index]} ({counts[index]:,})",
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("UMAP 1")
        axes.set_ylabel("UMAP 2")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.2, fontsize=9)
        return svg(figure)


def horizontal_bars(names: Sequence[str], values: Sequence[float], unit: str) -> str:
    """One bar a name, top to bottom, with the value written at its end."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(8.0, 0.42 * len(names) + 0.8)
        rows = np.arange(len(names))
        axes.barh(rows, values, height=0.62, color=ACCENT)
        for row, value in enumerate(values):
            axes.text(value + max(values) * 0.015, row, f"{value:.3g}", va="center", fontsize=9)
        axes.set_yticks(rows, list(names))
        axes.invert_yaxis()
        axes.set_xlim(0, max(values) * 1.15)
        axes.set_xlabel(unit)
        return svg(figure)
