"""``cellfoundry submit``: run any command on a Ray cluster."""

from __future__ import annotations

import secrets
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cellfoundry.cli.jobs import ADDRESS, INSECURE, write

if TYPE_CHECKING:
    from cellfoundry.cluster.connection import Cluster

INTERRUPTED = 130


def submit(
    command: list[str] = typer.Argument(
        ..., metavar="-- COMMAND...", help="Any cellfoundry command, without `cellfoundry` in front."
    ),
    address: str | None = ADDRESS,
    name: str | None = typer.Option(
        None, help="Beginning of the job's name. Default: the command's words, such as data-ingest."
    ),
    num_gpus: float | None = typer.Option(
        None,
        min=0,
        help="GPUs for a command that computes in one process (embed, model export). Pretraining takes its own: "
        "--set workers=N.",
    ),
    follow: bool = typer.Option(
        False, "--follow", help="Show the job's log until it ends, and exit with its code."
    ),
    shared: list[Path] = typer.Option(
        [],
        help="Folder that the cluster sees under the same path: what lies in it does not travel. Repeatable.",
    ),
    insecure: bool = INSECURE,
) -> None:
    """Run a cellfoundry command on a Ray cluster, with this version of the package.

    Local inputs of up to 100 MB travel with the job; outputs are written where the cluster sees them, so they need
    an absolute path on shared storage, or a URL. The token of a cluster that checks one is taken from RAY_AUTH_TOKEN,
    RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token when RAY_AUTH_MODE=token.
    """
    from typer.main import get_command

    from cellfoundry.cli.main import app
    from cellfoundry.cluster.bundle import Bundle
    from cellfoundry.cluster.command import parse_command
    from cellfoundry.cluster.connection import JOB_ID, Cluster
    from cellfoundry.cluster.errors import ClusterError

    parsed = parse_command(get_command(app), command)
    if num_gpus and parsed.words == ("train", "pretrain"):
        raise ClusterError(
            "train pretrain places its workers' GPUs itself: leave out --num-gpus and give --set workers=N."
        )
    name = name or "-".join(parsed.words)
    if not JOB_ID.fullmatch(name):
        raise ClusterError(
            f"--name {name!r} must be of letters, digits and _.- and begin with a letter or digit."
        )
    bundle = Bundle()
    arguments = parsed.on_cluster(bundle.add, shared)
    cluster = Cluster(address, insecure)
    job = f"{name}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="cellfoundry-submit-") as folder:
        bundle.write(Path(folder))
        cluster.submit(
            job, entrypoint(arguments), Path(folder), num_gpus, {"cellfoundry": shlex.join(command)}
        )
    typer.echo(job)
    if not follow:
        typer.echo(
            f"submitted to {cluster.address}; watch it with `cellfoundry jobs logs {job} --follow`", err=True
        )
        return
    raise typer.Exit(follow_to_the_end(cluster, job))


def entrypoint(arguments: list[str]) -> str:
    """The job's shell line; a cluster's environment may call its Python python3 only."""
    return (
        "python=python; command -v python >/dev/null || python=python3; "
        f"exec $python -m cellfoundry {shlex.join(arguments)}"
    )


def follow_to_the_end(cluster: Cluster, job: str) -> int:
    """Show the log until the job ends or is left alone; the exit code. Ctrl-C stops watching, not the job."""
    from cellfoundry.cluster.connection import exit_code
    from cellfoundry.cluster.follow import Follower

    follower = Follower(cluster, job, write)
    while True:
        try:
            ended = follower.run()
        except KeyboardInterrupt:
            choice = ask()
            if choice == "stop":
                cluster.stop(job)
                typer.echo(f"stopping {job}", err=True)
            elif choice == "detach":
                typer.echo(
                    f"detached; {job} goes on: `cellfoundry jobs logs {job} --follow` watches it, "
                    f"`cellfoundry jobs stop {job}` stops it",
                    err=True,
                )
                return INTERRUPTED
            continue
        if (
            ended.driver_exit_code is None and ended.status == "FAILED"
        ):  # it never ran, so its log says nothing
            typer.echo(f"error: {job}: {ended.message}", err=True)
        return exit_code(ended)


def ask() -> str:
    """What Ctrl-C meant: "stop", "detach" or "watch"; without a terminal, or at a second Ctrl-C, "detach"."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "detach"
    sys.stderr.write("\n[s]top the job, [d]etach and let it run, or go on [w]atching? ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline().strip().lower()[:1]
    except KeyboardInterrupt:
        return "detach"
    return {"s": "stop", "w": "watch"}.get(answer, "detach")
