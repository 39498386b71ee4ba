"""``cellfoundry predict``: labels of every cell of a source by a fine-tuned model."""

from __future__ import annotations

from pathlib import Path

import typer

from cellfoundry.cli.console import ProgressDisplay
from cellfoundry.cli.embed import ENGINE_HELP, EngineName, Precision


def predict(
    source: str = typer.Argument(
        ..., metavar="INPUT", help="Raw counts: whatever `cellfoundry embed` takes."
    ),
    model: Path = typer.Option(..., help="Model directory that `cellfoundry train finetune` wrote."),
    out: Path = typer.Option(..., help="File to write: .csv, .parquet or .h5ad (a copy of the source)."),
    engine: EngineName = typer.Option(EngineName.auto, help=ENGINE_HELP),
    precision: Precision = typer.Option(Precision.fp32, help="bf16 is for GPUs."),
    layer: str | None = typer.Option(
        None,
        help="Matrix to read: X, raw or a layer's name. Default: the first that holds whole counts.",
    ),
) -> None:
    """Predict a label for every cell: obs columns prediction and, for classes, probability_CLASS.

    Cells without counts get none. Obs columns of these names in the source are replaced, and an .h5ad keeps none of
    those that an earlier prediction left there.
    """
    from cellfoundry_serving.predict import predict as run_predict

    with ProgressDisplay() as progress:
        summary = run_predict(
            source,
            model,
            out,
            engine=engine.value,
            precision=precision.value,
            layer=layer,
            progress=progress,
        )
    typer.echo(f"{out}: {summary}")
