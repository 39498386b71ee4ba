"""``cellfoundry task``: downstream tasks, each with its baselines and a report."""

from __future__ import annotations

import typer

from cellfoundry.cli import task_annotate, task_enhance, task_map, task_scaling

app = typer.Typer(help="Downstream tasks on labelled cells, each beside its baselines.", no_args_is_help=True)


@app.callback()
def task() -> None:
    """Downstream tasks on labelled cells, each beside its baselines."""


app.command("annotate")(task_annotate.annotate)
app.command("enhance")(task_enhance.enhance)
app.command("map")(task_map.map_)
app.command("scaling")(task_scaling.scaling)
