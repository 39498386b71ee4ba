"""``cellfoundry bench``: the benchmark suites."""

from __future__ import annotations

from pathlib import Path

import typer

from cellfoundry.cli.console import ProgressDisplay

app = typer.Typer(help="Measure this machine against peers on the same work.", no_args_is_help=True)


@app.command("list")
def list_suites() -> None:
    """List the suites."""
    from cellfoundry_bench.registry import list_suites as suites

    for suite in suites():
        typer.echo(f"{suite.name:<10} {suite.summary}")


@app.command()
def run(
    names: list[str] = typer.Argument(..., metavar="NAME", help="Suites to run, see `bench list`."),
    out: Path | None = typer.Option(
        None, help="Folder for one JSON file a suite. Default: benchmarks/results/DATE-PROCESSOR."
    ),
) -> None:
    """Run suites and write their results."""
    from cellfoundry_bench.runner import default_folder
    from cellfoundry_bench.runner import run as run_suites

    with ProgressDisplay() as progress:
        paths = run_suites(names, out or default_folder(), progress=progress)
    for path in paths:
        typer.echo(str(path))


@app.command()
def report(
    results: Path = typer.Option(Path("benchmarks/results"), help="Folder of results, searched recursively."),
    out: Path = typer.Option(Path("benchmarks/report.html"), help="HTML file to write."),
) -> None:
    """Draw all results into one self-contained HTML page."""
    from cellfoundry_bench.report import write_report

    typer.echo(str(write_report(results, out)))
