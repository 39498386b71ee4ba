"""Plots of a run's report beside the learning curve: how good and how fast it was."""

from __future__ import annotations

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cellfoundry.report.figures import binned
from cellfoundry_bench.figures import ACCENT, SECOND, STYLE, THIRD, svg

Lines = list[dict[str, float]]
POINTS = 400


def quality_curves(evaluations: Lines) -> str:
    """Median gene-wise Pearson correlation and the probe's scores over steps; empty text where nothing was measured."""
    curves = {
        "Pearson, median over genes": ("pearson_median", ACCENT),
        "probe accuracy": ("probe_accuracy", SECOND),
        "probe macro-F1": ("probe_macro_f1", THIRD),
    }
    measured = {
        label: [(line["step"], line[key]) for line in evaluations if line[key] is not None]
        for label, (key, _) in curves.items()
    }
    if not any(measured.values()):
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.6))
        axes = figure.add_subplot()
        for label, points in measured.items():
            if points:
                axes.plot(
                    *zip(*points, strict=True), marker="o", markersize=4, color=curves[label][1], label=label
                )
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1)
        axes.set_xlim(left=0)
        axes.set_xlabel("optimizer step")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return svg(figure)


def speed_curves(steps: Lines) -> str:
    """Learning rate and cells per second over steps, side by side; of long runs, means of equal spans."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.4), layout="constrained")
        rate, speed = figure.subplots(1, 2)
        _curve(rate, steps, "lr", "learning rate")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        _curve(speed, steps, "cells_per_s", "cells/s")
        return svg(figure)


def _curve(axes: Axes, steps: Lines, key: str, label: str) -> None:
    axes.plot(*binned([line["step"] for line in steps], [line[key] for line in steps], POINTS), color=ACCENT)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
