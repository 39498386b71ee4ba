"""Plots of the annotation report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from cellfoundry_bench.figures import ACCENT, FOURTH, INK, SECOND, STYLE, THIRD, new_axes, shortened, svg
from cellfoundry_tasks.annotate.calibration import Reliability
from cellfoundry_tasks.annotate.result import Evaluation, Row

KIND_COLORS = {"model": ACCENT, "random": FOURTH, "baseline": SECOND, "tuned": THIRD, "trivial": INK}
LINES = ("-", "--", ":", "-.")
TICKS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
LEAST_ERROR = 0.03
METRIC_NAMES = {"macro_f1": "macro-F1", "accuracy": "accuracy"}


def few_shot_curves(result: Evaluation) -> str:
    """Macro-F1 and accuracy of every row over the shots, with 95 % intervals, side by side so that they can be told
    apart; the scale is that of errors, wider the nearer to 1.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.4))
        places = np.arange(len(result.shots))
        for axes, metric in zip(figure.subplots(1, 2), METRIC_NAMES, strict=True):
            seen: Counter[str] = Counter()
            for offset, row in zip(np.linspace(-0.24, 0.24, len(result.rows)), result.rows, strict=True):
                mean, below, above = _intervals(row, metric, result.shots)
                axes.errorbar(
                    places + offset,
                    mean,
                    yerr=(below, above),
                    color=KIND_COLORS[row.kind],
                    linestyle=LINES[seen[row.kind] % len(LINES)],
                    linewidth=1.4,
                    elinewidth=1.0,
                    marker="o",
                    markersize=3.5,
                    label=row.name,
                )
                seen[row.kind] += 1
            axes.set_yscale("function", functions=(_of_error, _to_score))
            axes.set_ylim(0.0, 1.0)
            axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
            axes.set_xticks(places, result.shots)
            axes.set_xlabel("labelled cells a class")
            axes.set_title(METRIC_NAMES[metric], fontsize=10, loc="left")
        figure.legend(
            *axes.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3
        )
        return svg(figure)


def _of_error(score: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = -np.log(np.maximum(1 + LEAST_ERROR - score, LEAST_ERROR / 10))
    return found


def _to_score(place: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = 1 + LEAST_ERROR - np.exp(-place)
    return found


def _intervals(row: Row, metric: str, shots: Sequence[str]) -> tuple[list[float], list[float], list[float]]:
    found = [row.interval(metric, shot) for shot in shots]
    return (
        [each.mean for each in found],
        [0.0 if each.low is None else each.mean - each.low for each in found],
        [0.0 if each.high is None else each.high - each.mean for each in found],
    )


def reliability_plot(before: Reliability, after: Reliability) -> str:
    """Accuracy of held-out cells by the confidence they got, before and after temperature scaling."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(4.6, 4.2)
        axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.2)
        for name, found, color in (("before", before, FOURTH), ("after scaling", after, ACCENT)):
            axes.plot(
                found.confidence,
                found.accuracy,
                color=color,
                marker="o",
                markersize=4,
                label=f"{name}: ECE {found.expected_error:.3f}",
            )
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share called rightly")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return svg(figure)


def share_bars(names: Sequence[str], caught: Sequence[float], lost: Sequence[float]) -> str:
    """For each class left out, the share of its cells called unknown, and that of the others' cells."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(6.6, 0.42 * len(names) + 1.0)
        places = np.arange(len(names))
        axes.barh(places - 0.2, caught, height=0.38, color=ACCENT, label="of the class left out")
        axes.barh(places + 0.2, lost, height=0.38, color=SECOND, label="of the other classes")
        axes.set_yticks(places, [shortened(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.0)
        axes.set_xlabel("share of cells called unknown")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return svg(figure)
