"""``cellfoundry train finetune``: a pretrained model learns an obs column."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cellfoundry.cli.console import ProgressDisplay

if TYPE_CHECKING:
    from cellfoundry_training.finetune.fitting import Epoch


class TaskName(StrEnum):
    """What a head predicts."""

    classification = "classification"
    regression = "regression"


class Tune(StrEnum):
    """What learns beside the head."""

    head = "head"
    last = "last"
    full = "full"
    lora = "lora"


def finetune(
    model: Path = typer.Option(..., help="Model directory to start from."),
    data: str = typer.Option(
        ..., help="Labelled raw counts: whatever `cellfoundry embed` takes, or a store."
    ),
    label: str = typer.Option(..., help="Obs column to predict."),
    out: Path = typer.Option(
        ..., help="Model directory to write; `embed`, `serve` and `predict` take it. report.html is in it."
    ),
    task: TaskName | None = typer.Option(
        None, help="Default: regression for a column of numbers, classification for any other."
    ),
    tune: Tune | None = typer.Option(
        None,
        help="What learns beside the head. head: nothing, so each cell is encoded once; last: the last --last encoder "
        "layers; full: everything; lora: adapters (needs the extra 'lora'). Default: head, or last with --last.",
    ),
    last: int | None = typer.Option(None, min=1, help="Encoder layers that learn with --tune last (2)."),
    layer: str | None = typer.Option(
        None, help="Matrix to read: X, raw or a layer's name. Default: the first that holds whole counts."
    ),
    set_: list[str] = typer.Option(
        [],
        "--set",
        metavar="KEY=VALUE",
        help="Any other value, e.g. class_weights=balanced, hidden=256, encoder_learning_rate=3e-5. Repeatable.",
    ),
) -> None:
    """Fine-tune on an obs column: one process, one device; cells are split by label to train, stop and judge."""
    from cellfoundry.finetuning import finetune as run_finetune
    from cellfoundry_training.finetune.config import build_config

    chosen = {"label": label, "task": task and task.value, "last": last}
    chosen["tune"] = tune.value if tune else ("last" if last else "head")
    config = build_config(chosen, set_)
    with ProgressDisplay() as progress:
        result = run_finetune(
            model,
            data,
            out,
            config,
            layer=layer,
            progress=progress,
            watch=lambda epoch: progress.note(epoch_text(epoch)),
        )
    for line in result.left_out():
        typer.echo(f"left out: {line}")
    typer.echo(f"{out}: {result}")


def epoch_text(epoch: Epoch) -> str:
    """``epoch 3: loss 0.5123, validation 0.6021``."""
    return f"epoch {epoch.epoch}: loss {epoch.train_loss:.4f}, validation {epoch.validation_loss:.4f}"
