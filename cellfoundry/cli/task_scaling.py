"""``cellfoundry task scaling``: what more cells to learn from brought."""

from __future__ import annotations

from pathlib import Path

import typer

from cellfoundry.cli.console import command_line


def scaling(
    results: list[Path] = typer.Argument(
        ...,
        help="Folders that `task annotate` or `task enhance` wrote, with models of one shape on the same cells.",
    ),
    out: Path = typer.Option(..., help="Folder for report.html and result.json."),
) -> None:
    """Draw the scores of finished runs over the number of cells that their models learned from.

    Says what each doubling of the cells brought and how far the strongest baseline is. Runs of several tasks or
    sources give a curve each.
    """
    from cellfoundry import tasks

    for curve in tasks.scaling(results, out, command=command_line()):
        typer.echo(str(curve))
    typer.echo(str(out / "report.html"))
