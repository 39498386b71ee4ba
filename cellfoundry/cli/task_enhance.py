"""``cellfoundry task enhance``: what thinned cells would show at their full depth."""

from __future__ import annotations

from pathlib import Path

import typer

from cellfoundry.cli.console import ProgressDisplay, command_line


def enhance(
    data: str = typer.Option(
        ..., help="Raw counts of cells of full depth: a file or 10x folder that `cellfoundry embed` takes."
    ),
    model: Path = typer.Option(..., help="Model directory; of official weights the part 'gene'."),
    out: Path = typer.Option(..., help="Folder for report.html and result.json."),
    embedding_model: Path | None = typer.Option(
        None,
        help="Model directory that embeds the cells to cluster, of official weights the part 'rde'. Default: --model.",
    ),
    label: str | None = typer.Option(
        None, help="Obs column of the reference clusters. Default: Leiden clusters of the full-depth cells."
    ),
    depths: str = typer.Option("0.01,0.05,0.1,0.2", help="Shares of a cell's molecules that are kept."),
    cluster_depth: float = typer.Option(0.1, help="Share of molecules of the cells that are clustered."),
    seeds: int = typer.Option(3, min=1, help="Times that each depth is drawn."),
    heldout_column: str | None = typer.Option(
        None,
        help="Boolean obs column of the cells to judge, such as those held out of training; peers have all cells.",
    ),
    cells: int = typer.Option(
        500, min=2, help="Cells judged at the gene level, drawn at random where there are more."
    ),
    scvi_epochs: int = typer.Option(
        60, min=0, help="Epochs of scVI, trained once a depth on the CPU; 0 leaves it out."
    ),
    layer: str | None = typer.Option(
        None, help="Matrix to read: X, raw or a layer's name. Default: the first that holds whole counts."
    ),
) -> None:
    """Enhance the depth of thinned cells, beside kNN smoothing, MAGIC, scVI, trivial answers and random weights."""
    from cellfoundry.tasks import enhance as run

    with ProgressDisplay() as progress:
        result = run(
            data,
            model,
            out,
            embedding_model=embedding_model,
            layer=layer,
            command=command_line(),
            progress=progress,
            label=label,
            depths=_shares(depths),
            cluster_depth=cluster_depth,
            seeds=seeds,
            heldout_column=heldout_column,
            cells=cells,
            scvi_epochs=scvi_epochs,
        )
    typer.echo(f"{out}: {result}")


def _shares(text: str) -> tuple[float, ...]:
    from cellfoundry_tasks.errors import TaskError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise TaskError(f"--depths {text}: give numbers between 0 and 1, with commas between them") from None
