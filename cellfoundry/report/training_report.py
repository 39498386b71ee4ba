"""The report of a pretraining run, finished or not: curves, evaluations and configuration as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cellfoundry.report.figures import loss_curve
from cellfoundry.report.template import render
from cellfoundry.report.training_figures import quality_curves, speed_curves
from cellfoundry_bench.atomic import write_text
from cellfoundry_training import history
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.files import RunFiles
from cellfoundry_training.history import Record

EVALUATIONS_SHOWN = 40
"""Rows of the table of evaluations; of more, the first, the best, the last and others in even distance."""


def write(run: str | Path, out: str | Path) -> Path:
    """Write the report of ``run`` to the file ``out``, which needs nothing from outside.

    Raises:
        TrainingError: there is no run at ``run``, or it has not finished a step.
    """
    files = RunFiles(Path(run))
    if not files.config.is_file():
        raise TrainingError(
            f"run {files.folder} has no {files.config.name}: give the folder of a pretraining run"
        )
    records = history.read(files.metrics)
    steps, evaluations = history.steps(records), history.evaluations(records)
    if not steps:
        raise TrainingError(f"run {files.folder} has not finished a step yet: try again later")
    best = history.best_evaluation(records)
    html = render(
        "training.html.j2",
        name=files.folder.resolve().name,
        tiles=_tiles(steps[-1], best),
        loss_svg=loss_curve(steps, evaluations),
        quality_svg=quality_curves(evaluations),
        speed_svg=speed_curves(steps),
        best=best,
        evaluations=_shown(evaluations, best),
        with_probe=any(line["probe_accuracy"] is not None for line in evaluations),
        warnings=[line for line in records if "warning" in line],
        skipped=sum("skipped_in_a_row" in line for line in records),
        config=yaml.safe_load(files.config.read_text()),
    )
    return write_text(Path(out), html)


def _tiles(last: Record, best: Record | None) -> list[tuple[str, str]]:
    tiles = [
        (f"{last['step']:,}", f"steps on {last['cells']:,} cells, repeats counted"),
        (_hours(last["seconds"]), "in steps, evaluations and checkpoints not counted"),
        (f"{last['cells'] / max(last['seconds'], 1e-9):,.1f}", "cells/s on average"),
    ]
    if best is None:
        return tiles
    share = 100 * (1 - best["heldout_loss"] / best["gene_mean_loss"])
    side = "below" if share >= 0 else "ABOVE"
    tiles.insert(
        0,
        (
            f"{best['heldout_loss']:.4f}",
            f"held-out masked MSE at step {best['step']:,}, {abs(share):.1f} % {side} gene means "
            f"({best['gene_mean_loss']:.4f})",
        ),
    )
    if best["pearson_median"] is not None:
        tiles.append(
            (
                f"{best['pearson_median']:.3f}",
                f"median Pearson correlation of {best['pearson_genes']:,} genes",
            )
        )
    if best["probe_accuracy"] is not None:
        tiles.append(
            (
                f"{100 * best['probe_accuracy']:.1f} %",
                f"of {best['probe_cells']:,} cells labelled right by a linear probe",
            )
        )
    return tiles


def _hours(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _shown(evaluations: list[Record], best: Record | None) -> list[dict[str, Any]]:
    """Evaluations of the table, newest first."""
    every = -(-len(evaluations) // EVALUATIONS_SHOWN) or 1
    last = len(evaluations) - 1
    return [
        line | {"is_best": line is best}
        for number, line in enumerate(evaluations)
        if number % every == 0 or number == last or line is best
    ][::-1]
