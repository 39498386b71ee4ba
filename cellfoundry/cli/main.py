"""The ``cellfoundry`` command. Layers are imported inside the commands, so that ``--help`` stays instant."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import typer

from cellfoundry.cli import bench, data, embed, jobs, model, predict, quickstart, serve, submit, task, train
from cellfoundry.cli.console import print_warnings_as_lines, user_message

app = typer.Typer(
    name="cellfoundry",
    help="Raw single-cell counts in; a pretrained scFoundation-style model, its embeddings and an endpoint out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart.quickstart)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(model.app, name="model")
app.command("embed")(embed.embed)
app.command("predict")(predict.predict)
app.command("serve")(serve.serve)
app.command("submit", context_settings={"allow_interspersed_args": False})(submit.submit)
app.add_typer(jobs.app, name="jobs")
app.add_typer(task.app, name="task")
app.add_typer(bench.app, name="bench")


def version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from cellfoundry import __version__

        typer.echo(f"cellfoundry {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Raw single-cell counts in; a pretrained scFoundation-style model, its embeddings and an endpoint out."""


def terminate(signal_number: int, _: FrameType | None) -> None:
    """SIGTERM, as a scheduler sends it, cleans up like Ctrl-C: half-written outputs go."""
    sys.exit(128 + signal_number)


def run() -> None:
    """Entry point: exit code 2 and one sentence for what a user can mend, 130 for Ctrl-C, 143 for SIGTERM."""
    # Ray asks for a token file in the home directory and reports usage unless told otherwise before its import.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    print_warnings_as_lines()
    signal.signal(signal.SIGTERM, terminate)
    try:
        app()
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        typer.echo(f"error: {message}", err=True)
        sys.exit(2)
