"""``cellfoundry task annotate``: labels from few labelled cells."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cellfoundry.cli.console import ProgressDisplay, command_line

if TYPE_CHECKING:
    from cellfoundry_tasks.annotate.query import QueryResult
    from cellfoundry_tasks.annotate.result import Evaluation


class Features(StrEnum):
    """What labels are predicted from."""

    auto = "auto"
    expression = "expression"
    embedding = "embedding"
    both = "both"


def annotate(
    data: str = typer.Option(
        ..., help="Labelled raw counts: a file or 10x folder that `cellfoundry embed` takes."
    ),
    label: str = typer.Option(..., help="Obs column with the classes."),
    model: Path = typer.Option(..., help="Model directory."),
    out: Path = typer.Option(..., help="Folder for report.html and result.json, and for the labelled query."),
    unlabelled: list[str] = typer.Option(
        [], help="Value of the column that is no class, for instance unassigned. Repeatable."
    ),
    heldout_column: str | None = typer.Option(
        None, help="Boolean obs column: its true cells test, the others train. Default: test cells are drawn."
    ),
    seeds: int = typer.Option(5, min=1, help="Splits, which the intervals are over."),
    shots: str = typer.Option("5,10,50,all", help="Labelled training cells of each class, with commas."),
    tune: str = typer.Option(
        "", help="Fine-tunings to judge as well, slow: head, last (layers) and lora, with commas."
    ),
    last: int = typer.Option(2, min=1, help="Encoder layers that learn with --tune last."),
    query: str | None = typer.Option(
        None, help="Raw counts of new cells to label from --data; no curve is judged then."
    ),
    features: Features = typer.Option(
        Features.auto,
        help="With --query, what labels are predicted from; auto takes the best on the reference's own cells.",
    ),
    layer: str | None = typer.Option(
        None, help="Matrix to read: X, raw or a layer's name. Default: the first that holds whole counts."
    ),
) -> None:
    """Judge how few labelled cells a probe of the model needs beside its baselines, or label new cells (--query).

    With --query a copy of it in --out gets obs columns cellfoundry_label, cellfoundry_likeliest, cellfoundry_confidence
    and cellfoundry_unknown.
    """
    from cellfoundry import tasks

    settings: dict[str, Any] = {
        "label": label,
        "unlabelled": tuple(unlabelled),
        "heldout_column": heldout_column,
        "seeds": seeds,
        "shots": tuple(int(shot) if shot.strip().isdecimal() else shot.strip() for shot in shots.split(",")),
        "tune": tuple(name.strip() for name in tune.split(",") if name.strip()),
        "last": last,
        "features": features.value,
        "command": command_line(),
        "layer": layer,
    }
    result: Evaluation | QueryResult
    with ProgressDisplay() as progress:
        if query is None:
            result = tasks.annotate(data, model, out, progress=progress, **settings)
        else:
            result = tasks.annotate_query(query, data, model, out, progress=progress, **settings)
    for line in result.left_out:
        typer.echo(f"left out: {line}")
    typer.echo(f"{out}: {result}")
