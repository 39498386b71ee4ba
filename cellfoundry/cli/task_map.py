"""``cellfoundry task map``: batches in one space, labels from a reference to a query."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from cellfoundry.cli.console import ProgressDisplay, command_line


class Features(StrEnum):
    """What of the model is joined."""

    embedding = "embedding"
    expression = "expression"


class Method(StrEnum):
    """How batches are joined."""

    harmony = "harmony"
    bbknn = "bbknn"


def map_(
    model: Path = typer.Option(..., help="Model directory."),
    label: str = typer.Option(..., help="Obs column of the labels."),
    out: Path = typer.Option(
        ..., help="Folder for report.html, result.json and query.h5ad or cells.h5ad with what was found."
    ),
    data: str | None = typer.Option(
        None, help="Raw counts of several batches, each left out in turn; with --batch."
    ),
    batch: str | None = typer.Option(None, help="Obs column that names the batches of --data."),
    reference: str | None = typer.Option(None, help="Labelled raw counts that --query takes labels from."),
    query: str | None = typer.Option(
        None, help="Raw counts that take labels; labels of its own, where it has the column, are to judge by."
    ),
    features: Features = typer.Option(
        Features.embedding, help="What of the model is joined and carries the labels."
    ),
    method: Method = typer.Option(Method.harmony, help="How its batches are joined."),
    target: str = typer.Option("t4.5", help="Depth T asked of the model, the same for all cells."),
    neighbors: int = typer.Option(15, min=1, help="Reference cells that vote on a label."),
    unlabelled: list[str] = typer.Option([], help="A label that means none, e.g. unassigned. Repeatable."),
    compared_cells: int = typer.Option(
        4000, min=100, help="Methods are compared on at most so many cells, drawn by batch and seed."
    ),
    seed: int = typer.Option(0, min=0, help="Of the drawn cells, random weights and random starts."),
    layer: str | None = typer.Option(
        None, help="Matrix to read: X, raw or a layer's name. Default: the first that holds whole counts."
    ),
    device: str = typer.Option("auto", help="Torch device; auto is CUDA where there is one."),
) -> None:
    """Join batches in the model's space and carry labels over, beside PCA, Harmony, Scanorama and random weights."""
    from cellfoundry.tasks import map_cells

    with ProgressDisplay() as progress:
        result = map_cells(
            model=model,
            out=out,
            label=label,
            data=data,
            batch=batch,
            reference=reference,
            query=query,
            layer=layer,
            device=device,
            command=command_line(),
            progress=progress,
            features=features.value,
            method=method.value,
            target=target,
            neighbors=neighbors,
            unlabelled=tuple(unlabelled),
            compared_cells=compared_cells,
            seed=seed,
        )
    for left_out in result.left_out:
        typer.echo(f"left out: {left_out}")
    typer.echo(f"{out / 'report.html'}: {result}")
