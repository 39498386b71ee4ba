"""``cellfoundry train``: pretraining with Ray Train and DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import typer

from cellfoundry.cli.console import ProgressDisplay
from cellfoundry.cli.plan import plan

app = typer.Typer(help="Train models on a shard store.", no_args_is_help=True)

app.command()(plan)


@app.callback()
def train() -> None:
    """Train models on a shard store."""


@app.command()
def pretrain(
    config: str = typer.Option(..., help="Preset (tiny, 3m, 10m, 100m, 300m) or a YAML file."),
    store: Path = typer.Option(..., help="Shard store that `cellfoundry data ingest` wrote."),
    run: Path = typer.Option(..., help="Folder of the run: resolved config, metrics, checkpoints, model."),
    set_: list[str] = typer.Option(
        [],
        "--set",
        metavar="KEY=VALUE",
        help="Override one value of the config, e.g. max_steps=1000 or model.encoder_depth=4. Repeatable.",
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on from the run's last checkpoint."),
) -> None:
    """Pretrain with the read-depth-aware masked objective; the model directory is RUN/model."""
    from cellfoundry_training.config import load_config
    from cellfoundry_training.pretrain import pretrain as run_pretrain

    settings = load_config(config, set_)
    with ProgressDisplay() as progress:
        result = run_pretrain(settings, store, run, resume=resume, progress=progress)
    typer.echo(
        f"{result.model_dir}: step {result.steps:,}, held-out masked MSE {result.heldout_loss:.4f}; "
        f"predicting each gene's mean gives {result.gene_mean_loss:.4f}"
    )
