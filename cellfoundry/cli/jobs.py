"""``cellfoundry jobs``: what a cluster has run, is running, and how to stop it."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING

import typer

from cellfoundry.cli.console import duration

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

app = typer.Typer(
    help="List, watch and stop jobs that `cellfoundry submit` sent to a cluster.", no_args_is_help=True
)

ADDRESS = typer.Option(
    None,
    "--address",
    help="Dashboard of the cluster, http(s)://HOST:PORT. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS or "
    "http://127.0.0.1:8265.",
)
INSECURE = typer.Option(
    False,
    "--insecure",
    help="Also speak to a cluster that does not check tokens: on another machine, or with a token set here.",
)
JOB = typer.Argument(..., metavar="JOB", help="Name of the job, as `cellfoundry submit` printed it.")


def write(text: str) -> None:
    """Text of a job's log to stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


@app.command("list")
def list_jobs(address: str | None = ADDRESS, insecure: bool = INSECURE) -> None:
    """All jobs of the cluster, the oldest first: name, state, start, duration and command."""
    from cellfoundry.cluster.connection import Cluster

    rows = [
        ("JOB", "STATUS", "STARTED", "TOOK", "COMMAND"),
        *(
            (job.submission_id or "", str(job.status.value), _started(job), _took(job), _command(job))
            for job in Cluster(address, insecure).jobs()
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, row[4]]).rstrip())


@app.command()
def status(job: str = JOB, address: str | None = ADDRESS, insecure: bool = INSECURE) -> None:
    """State of one job, its times, exit code and command."""
    from cellfoundry.cluster.connection import Cluster, ended, exit_code

    details = Cluster(address, insecure).job(job)
    lines = [("job", job), ("status", details.status.value), ("command", _command(details))]
    lines += [("started", _started(details)), ("took", _took(details))]
    if ended(details):
        lines.append(("exit code", str(exit_code(details))))
    for name, value in lines:
        typer.echo(f"{name:<10} {value}")


@app.command()
def logs(
    job: str = JOB,
    follow: bool = typer.Option(False, "--follow", help="Go on until the job ends; exit with its code."),
    tail: int | None = typer.Option(None, min=0, help="Begin with the last N lines instead of the first."),
    address: str | None = ADDRESS,
    insecure: bool = INSECURE,
) -> None:
    """Print what a job has written."""
    from cellfoundry.cluster.connection import Cluster, exit_code
    from cellfoundry.cluster.follow import Follower

    cluster = Cluster(address, insecure)
    so_far = cluster.logs(job)
    lines = so_far.splitlines(keepends=True)
    write("".join(lines if tail is None else lines[max(0, len(lines) - tail) :]))
    if follow:
        raise typer.Exit(exit_code(Follower(cluster, job, write, shown=len(so_far)).run()))


@app.command()
def stop(job: str = JOB, address: str | None = ADDRESS, insecure: bool = INSECURE) -> None:
    """Stop a job: SIGTERM, so that it can save, and SIGKILL if it has not ended within a minute."""
    from cellfoundry.cluster.connection import Cluster
    from cellfoundry.cluster.follow import wait_until_ended

    cluster = Cluster(address, insecure)
    if cluster.stop(job):
        typer.echo(f"{job}: stopping")
    typer.echo(f"{job}: {wait_until_ended(cluster, job).status.value}")


def _started(job: JobDetails) -> str:
    if not job.start_time:
        return "-"
    return datetime.fromtimestamp(job.start_time / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _took(job: JobDetails) -> str:
    if not job.start_time:
        return "-"
    end = job.end_time / 1000 if job.end_time else datetime.now().timestamp()
    return duration(max(0.0, end - job.start_time / 1000))


def _command(job: JobDetails) -> str:
    """The command as it was submitted, or the shell line of a job that someone else sent."""
    return (job.metadata or {}).get("cellfoundry", job.entrypoint)
