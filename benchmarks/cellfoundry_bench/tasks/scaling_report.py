"""The page of scaling curves: what more cells to learn from brought, and how far the strongest baseline is."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes

from cellfoundry_bench.figures import ACCENT, FOURTH, INK, SECOND, STYLE, THIRD, new_axes, svg
from cellfoundry_bench.tasks.page import Section, page
from cellfoundry_tasks.scaling.curves import Curve, Scaling, ScoreCurves
from cellfoundry_tasks.scaling.results import is_error

QUESTION = (
    "What did more cells to learn from bring, and would still more of them reach the strongest baseline?"
)
COLORS = (ACCENT, FOURTH, THIRD, SECOND)
LEVEL_LINES = ("-", "--", ":", "-.")


def scaling_page(curves: Sequence[Scaling], command: str) -> str:
    """The page of finished curves; ``command`` is how it was asked for."""
    return page(
        "Scaling: scores by training cells",
        QUESTION,
        _tiles(curves),
        [section for group in curves for section in _sections(group)],
        [*_facts(curves), ("Command", command)],
    )


def _tiles(curves: Sequence[Scaling]) -> list[tuple[str, str]]:
    tiles = []
    for group in curves:
        first = group.scores[0]
        best = max(first.curves, key=lambda curve: curve.better_by)
        tiles.append(
            (f"{best.points[-1][1].mean:.3f}", f"{group.title}: {first.score}, {best.way}, with most cells")
        )
        tiles.append((f"{best.per_doubling:+.3f}", "what a doubling of the cells makes better"))
        tiles.append((f"{first.levels[first.strongest].mean:.3f}", f"the same score of {first.strongest}"))
    return tiles


def _sections(group: Scaling) -> list[Section]:
    return [
        Section(
            f"{group.title}: {each.score}",
            _how_to_read(group, each),
            (_plot(each),),
            columns=(
                "Way",
                *(f"{run.training_cells:,} cells" for run in group.runs),
                "A doubling",
                "Ahead by",
                "Level",
            ),
            rows=[*(_curve_row(curve) for curve in each.curves), *_level_rows(each, len(group.runs))],
            strong=frozenset(range(len(each.curves))),
        )
        for each in group.scores
    ]


def _how_to_read(group: Scaling, each: ScoreCurves) -> str:
    over = "cells" if group.runs[0].task == "enhance" else "seeds"
    intervals = f", with 95 % intervals over {over}" if each.curves[0].points[-1][1].high is not None else ""
    return (
        f"{'Lower' if is_error(each.score) else 'Higher'} is better. Points: models, one training of each, all as long"
        f"{intervals}; what another start would change is not in them. Level lines: strong baselines, which no cell "
        "of the pretraining changes; trivial answers and random weights are in the table alone. A doubling: how much "
        f"better it makes the score, by a line through the points. Ahead by: of {each.strongest}, the strongest of "
        "the strong, with most cells. Level: at how many cells, if each further doubling brought as much."
    )


def _curve_row(curve: Curve) -> list[str]:
    return [
        curve.way,
        *(str(score) for _, score in curve.points),
        f"{curve.per_doubling:+.4f}",
        f"{curve.better_by:+.3f}",
        outlook(curve),
    ]


def _level_rows(each: ScoreCurves, runs: int) -> list[list[str]]:
    beside = each.levels | each.others
    return [[name, *[""] * (runs - 1), str(score), "", "", ""] for name, score in beside.items()]


def outlook(curve: Curve) -> str:
    """At how many cells the model is level with the strongest baseline."""
    doublings = curve.doublings_to_level
    if doublings is None:
        return "out of reach"
    if doublings == 0:
        return "ahead"
    return f"{float(f'{curve.points[-1][0] * 2**doublings:.2g}'):,.0f} cells"


def _plot(each: ScoreCurves) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(5.4, 3.2)
        for curve, color in zip(each.curves, COLORS * len(each.curves), strict=False):
            _draw(axes, curve, color)
        for number, (name, score) in enumerate(each.levels.items()):
            axes.axhline(
                score.mean,
                color=INK,
                linewidth=1,
                linestyle=LEVEL_LINES[number % len(LEVEL_LINES)],
                label=name,
            )
        axes.set_xscale("log")
        cells = [number for number, _ in each.curves[0].points]
        axes.set_xticks(cells, [f"{number:,}" for number in cells])
        axes.minorticks_off()
        axes.set_xlabel("cells that the model learned from")
        axes.set_ylabel(each.score.partition(",")[0])
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return svg(figure)


def _draw(axes: Axes, curve: Curve, color: str) -> None:
    cells = [number for number, _ in curve.points]
    scores = [score for _, score in curve.points]
    axes.errorbar(
        cells,
        [score.mean for score in scores],
        yerr=(
            [0.0 if score.low is None else score.mean - score.low for score in scores],
            [0.0 if score.high is None else score.high - score.mean for score in scores],
        ),
        color=color,
        linewidth=1.4,
        elinewidth=1.0,
        marker="o",
        markersize=4,
        label=curve.way,
    )


def _facts(curves: Sequence[Scaling]) -> list[tuple[str, str]]:
    facts = []
    for group in curves:
        run = group.runs[-1]
        facts.append(
            (
                f"Models of {group.title}",
                f"{run.parameters:,} parameters, encoder and decoder {' and '.join(run.layers)}; "
                + "; ".join(
                    f"{each.training_cells:,} cells to learn from"
                    + (f", {each.cells_seen:,} seen, repeats counted" if each.cells_seen else "")
                    for each in group.runs
                ),
            )
        )
    return [
        *facts,
        (
            "The line",
            "Least squares of the score on the log of the cells. With few models it says where things head, not where "
            "they end: it is no forecast.",
        ),
    ]
