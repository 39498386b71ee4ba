"""Scores over the number of cells that models learned from, and what each doubling of them brought."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.intervals import Interval
from cellfoundry_tasks.scaling.results import Run, is_error, read_run

MOST_DOUBLINGS = 20
"""A million times the cells: beyond it more of them are not what is missing."""
LONGEST_TRAINING = 1.1
"""How many times the cells that one model saw another may have seen, repeats counted: three times the steps brought
more than ten times the cells (benchmarks/task_model/results)."""
SAME = 0.01
"""Relative difference up to which a baseline is the same in two runs: in the committed ones it is below 1e-6, and a
training of scVI's on another machine may differ more."""


@dataclass(frozen=True)
class Curve:
    """One way of the model over training cells.

    Attributes:
        way: what is judged.
        points: (training cells, score), ascending.
        per_doubling: how much better each doubling of the cells makes the score, by least squares on their log.
        better_by: lead of the model of most cells over the strongest baseline; below 0 it stays behind.
    """

    way: str
    points: tuple[tuple[int, Interval], ...]
    per_doubling: float
    better_by: float

    @property
    def doublings_to_level(self) -> float | None:
        """Further doublings of the cells that close the gap if each brings ``per_doubling``; 0 without one, None where
        more than MOST_DOUBLINGS would be needed.
        """
        if self.better_by >= 0:
            return 0.0
        if self.per_doubling * MOST_DOUBLINGS < -self.better_by:
            return None
        return -self.better_by / self.per_doubling


@dataclass(frozen=True)
class ScoreCurves:
    """All curves of one score.

    Attributes:
        score: its name for people.
        curves: of the model's ways.
        levels: strong baseline -> its score.
        others: the same of trivial answers and random weights.
    """

    score: str
    curves: tuple[Curve, ...]
    levels: dict[str, Interval]
    others: dict[str, Interval]

    @property
    def strongest(self) -> str:
        """The strong baseline with the best score."""
        return _strongest(self.score, self.levels)


@dataclass(frozen=True)
class Scaling:
    """Runs of one task on the same cells.

    Attributes:
        runs: by training cells, ascending.
        scores: of all scores.
    """

    runs: tuple[Run, ...]
    scores: tuple[ScoreCurves, ...]

    @property
    def title(self) -> str:
        """``annotate on baron.h5ad``."""
        return f"{self.runs[0].task} on {self.runs[0].source}"

    def __str__(self) -> str:
        """One line for people."""
        first = self.scores[0]
        best = max(first.curves, key=lambda curve: curve.better_by)
        cells = ", ".join(f"{score.mean:.3f} ({number:,})" for number, score in best.points)
        return (
            f"{self.title}: {first.score}, {best.way} by training cells: {cells}; "
            f"{first.levels[first.strongest].mean:.3f} ({first.strongest})"
        )


def scaling(folders: Sequence[str | Path]) -> list[Scaling]:
    """The curves of finished runs, one for each task and source of cells, in the order given.

    Args:
        folders: outputs of ``annotate`` or ``enhance`` with models of one shape that learned from different cells.

    Raises:
        TaskError: a folder without such a result, a model that does not say how many cells it learned from, runs that
            are not of the same cells, settings, shape and length of training, or fewer than two numbers of cells.
    """
    if isinstance(folders, str | Path) or not folders:
        raise TaskError(
            "scaling: give a list of at least two folders that task annotate or task enhance wrote"
        )
    groups: dict[tuple[str, str], list[Run]] = {}
    for folder in folders:
        run = read_run(Path(folder))
        groups.setdefault((run.task, run.source), []).append(run)
    return [_of_group(sorted(runs, key=lambda run: run.training_cells)) for runs in groups.values()]


def record(curves: Sequence[Scaling]) -> dict[str, Any]:
    """All numbers, for ``result.json``."""
    return {
        "task": "scaling",
        "curves": [
            {
                "task": group.runs[0].task,
                "source": group.runs[0].source,
                "models": [
                    {name: getattr(run, name) for name in ("training_cells", "cells_seen", "parameters")}
                    for run in group.runs
                ],
                "scores": [
                    asdict(each)
                    | {
                        "strongest": each.strongest,
                        "doublings_to_level": {c.way: c.doublings_to_level for c in each.curves},
                    }
                    for each in group.scores
                ],
            }
            for group in curves
        ],
    }


def _of_group(runs: Sequence[Run]) -> Scaling:
    first, last = runs[0], runs[-1]
    if len(runs) < 2:
        raise TaskError(
            f"{first.folder}: is the only result of {first.task} on {first.source}; a curve needs at least two models"
        )
    for one, other in itertools.pairwise(runs):
        _check_alike(one, other)
    scores = [
        score for score in dict.fromkeys(score for score, _ in last.values) if _is_drawable(score, runs)
    ]
    if not scores:
        raise TaskError(
            f"{last.folder}: has no score of the model and of a strong baseline that all results have"
        )
    return Scaling(tuple(runs), tuple(_of_score(score, runs) for score in scores))


def _is_drawable(score: str, runs: Sequence[Run]) -> bool:
    """Whether every run has it of every way of the model and of the same strong baselines, one at least."""
    strong = [{way for way in run.strong if (score, way) in run.values} for run in runs]
    return (
        bool(strong[0])
        and all(each == strong[0] for each in strong)
        and bool(runs[0].own)
        and all((score, way) in run.values for run in runs for way in runs[-1].own)
    )


def _check_alike(one: Run, other: Run) -> None:
    """TaskError where two runs cannot lie on one curve."""
    for name in sorted(one.same.keys() | other.same.keys()):
        if one.same.get(name) != other.same.get(name):
            raise TaskError(
                f"{other.folder}: {name} is {other.same.get(name)!r}, in {one.folder} {one.same.get(name)!r}; "
                "results on one curve need the same cells and settings"
            )
    if (one.parameters, one.layers) != (other.parameters, other.layers):
        raise TaskError(
            f"{other.folder}: its model has {other.parameters:,} parameters, encoder and decoder "
            f"{' and '.join(other.layers)}, that of {one.folder} {one.parameters:,}, {' and '.join(one.layers)}; "
            "a curve is of models of one shape"
        )
    if one.training_cells == other.training_cells:
        raise TaskError(
            f"{other.folder}: its model learned from {other.training_cells:,} cells, and so did that of {one.folder}; "
            "give one result for each number of cells"
        )
    seen = sorted(run.cells_seen or 0 for run in (one, other))
    if seen[0] and seen[1] > LONGEST_TRAINING * seen[0]:
        raise TaskError(
            f"{other.folder}: its model saw {other.cells_seen:,} cells, repeats counted, that of {one.folder} "
            f"{one.cells_seen:,}; a curve of cells needs models that trained for as long"
        )
    for place, value in one.values.items():
        theirs = other.values.get(place)
        if place[1] in one.strong and theirs and not math.isclose(value.mean, theirs.mean, rel_tol=SAME):
            raise TaskError(
                f"{other.folder}: {place[0]} of {place[1]} is {theirs.mean:.4g}, in {one.folder} {value.mean:.4g}; it "
                "does not depend on the model, so these are other cells or other versions of a library"
            )


def _of_score(score: str, runs: Sequence[Run]) -> ScoreCurves:
    last = runs[-1]
    beside = {
        way: value for (named, way), value in last.values.items() if named == score and way not in last.own
    }
    levels = {way: value for way, value in beside.items() if way in last.strong}
    others = {way: value for way, value in beside.items() if way not in last.strong}
    strongest = levels[_strongest(score, levels)].mean
    sign = -1.0 if is_error(score) else 1.0
    curves = []
    for way in last.own:
        points = tuple((run.training_cells, run.values[score, way]) for run in runs)
        doublings = [math.log2(cells) for cells, _ in points]
        slope = float(np.polyfit(doublings, [value.mean for _, value in points], 1)[0])
        curves.append(Curve(way, points, sign * slope, sign * (points[-1][1].mean - strongest)))
    return ScoreCurves(score, tuple(curves), levels, others)


def _strongest(score: str, levels: dict[str, Interval]) -> str:
    return (min if is_error(score) else max)(levels, key=lambda name: levels[name].mean)
