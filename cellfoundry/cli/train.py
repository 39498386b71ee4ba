"""``cellfoundry train``: pretraining with Ray Train and DeepSpeed, and fine-tuning."""

from __future__ import annotations

from pathlib import Path

import typer

from cellfoundry.cli import training_text
from cellfoundry.cli.console import ProgressDisplay
from cellfoundry.cli.finetune import finetune
from cellfoundry.cli.plan import plan

REPORT = "report.html"

app = typer.Typer(help="Pretrain on a shard store; fine-tune on labelled cells.", no_args_is_help=True)

app.command()(plan)
app.command()(finetune)


@app.callback()
def train() -> None:
    """Pretrain on a shard store; fine-tune on labelled cells."""


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
    from cellfoundry_training.errors import RunStopped
    from cellfoundry_training.pretrain import pretrain as run_pretrain

    settings = load_config(config, set_)
    try:
        with ProgressDisplay() as progress:
            result = run_pretrain(
                settings,
                store,
                run,
                resume=resume,
                progress=progress,
                watch=lambda record: training_text.show(record, progress),
            )
    except RunStopped as stopped:
        typer.echo(str(stopped), err=True)
        raise
    typer.echo(training_text.result_text(result))


@app.command()
def report(
    run: Path = typer.Argument(..., help="Folder of a run, finished or not."),
    out: Path | None = typer.Option(None, help="Page to write. Default: RUN/report.html."),
) -> None:
    """Write the run's report: learning curve, learning rate, throughput, evaluations by depth, configuration."""
    from cellfoundry.report import training_report

    typer.echo(str(training_report.write(run, out or run / REPORT)))
