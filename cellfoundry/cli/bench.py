"""``cellfoundry bench``: the benchmark suites."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(help="Measure this machine against peers on the same work.", no_args_is_help=True)


@app.command("list")
def list_suites() -> None:
    """List the suites."""
    from cellfoundry_bench.registry import list_suites as suites

    for suite in suites():
        typer.echo(f"{suite.name:<10} {suite.summary}")


@app.command()
def run(
    names: list[str] = typer.Argument(..., metavar="NAME...", help="Suites to run, see `bench list`."),
    out: Path = typer.Option(Path("benchmarks/results/local"), help="Folder for one JSON file a suite."),
) -> None:
    """Run suites and write their results."""
    from cellfoundry_bench.runner import run as run_suites

    for path in run_suites(names, out):
        typer.echo(str(path))


@app.command()
def report(
    results: Path = typer.Option(Path("benchmarks/results"), help="Folder of results, searched recursively."),
    out: Path = typer.Option(Path("benchmarks/report.html"), help="HTML file to write."),
) -> None:
    """Draw all results into one self-contained HTML page."""
    from cellfoundry_bench.report import write_report

    typer.echo(str(write_report(results, out)))
