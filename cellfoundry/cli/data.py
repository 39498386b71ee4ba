"""``cellfoundry data``: sources into a shard store, and what is in it."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

import typer

from cellfoundry.cli.console import ProgressDisplay

REPORT = "report.html"

app = typer.Typer(
    help="Ingest counts into a shard store; inspect, verify, report on and export it.", no_args_is_help=True
)


class Values(StrEnum):
    """What a store holds."""

    counts = "counts"
    float32 = "float32"


class Profile(StrEnum):
    """How a store is packed."""

    compact = "compact"
    fast = "fast"


@app.command()
def ingest(
    sources: list[str] = typer.Argument(
        ...,
        metavar="SRC",
        help="Counts: .h5ad, .zarr (AnnData), .loom, 10x .h5 or mtx folder, .csv/.tsv (cells x genes), .parquet "
        "(cell, gene, count), .npy/.npz; folders and globs of them; URLs (s3://, gs://, https://).",
    ),
    store: str = typer.Option(
        ..., help="Folder of the store to write; an existing store is replaced when done."
    ),
    append: bool = typer.Option(
        False, "--append", help="Add the cells to the store instead of replacing it."
    ),
    vocab: str = typer.Option(
        "scfoundation", help="Gene vocabulary: a shipped name, or a file with a gene column."
    ),
    aliases: Path | None = typer.Option(
        None, help="HGNC complete-set file with more alias and withdrawn symbols than the shipped table."
    ),
    layer: str | None = typer.Option(
        None, help="Matrix to read: X, raw or a layer's name. Default: the first that holds whole counts."
    ),
    min_genes: int = typer.Option(200, min=0, help="Drop cells with fewer expressed vocabulary genes."),
    min_total: float | None = typer.Option(None, min=0, help="Drop cells with fewer counts."),
    max_total: float | None = typer.Option(None, min=0, help="Drop cells with more counts."),
    max_mito: float | None = typer.Option(
        None, min=0, max=1, help="Drop cells with a larger share of counts in mitochondrial genes (MT-...)."
    ),
    seed: int = typer.Option(0, help="Seed of the global shuffle; the same seed gives the same store."),
    values: Values = typer.Option(
        Values.counts, help="counts refuses fractions; float32 keeps normalised values as they are."
    ),
    profile: Profile = typer.Option(
        Profile.compact, help="compact: about 1 byte an entry (zstd); fast: 2 bytes, less work to read."
    ),
    cpus: int | None = typer.Option(
        None,
        min=1,
        help="Workers, about 0.7 GB each. Default: one for each CPU. RAY_ADDRESS names a cluster instead.",
    ),
    fresh: bool = typer.Option(
        False, "--fresh", help="Start over: use nothing that a killed ingest has left."
    ),
) -> None:
    """Align counts to the vocabulary, filter cells, shuffle them and write a sharded store with Ray Data.

    A killed ingest goes on where it stopped when the same command runs again. The store's report is STORE/report.html.
    """
    from cellfoundry.report import data_report
    from cellfoundry_data.ingest import ingest as run_ingest
    from cellfoundry_data.qc import QcLimits

    limits = QcLimits(min_genes=min_genes, min_total=min_total, max_total=max_total, max_mito_share=max_mito)
    with ProgressDisplay() as progress:
        manifest = run_ingest(
            sources,
            store,
            vocab=vocab,
            aliases=aliases,
            limits=limits,
            seed=seed,
            layer=layer,
            values=values.value,
            profile=profile.value,
            append=append,
            fresh=fresh,
            cpus=cpus,
            progress=progress,
        )
    report_page = data_report.write(store, Path(store) / REPORT)
    typer.echo(
        f"{store}: {manifest['cells']:,} cells x {manifest['genes']:,} genes, {manifest['nnz']:,} non-zeros; "
        f"report in {report_page}"
    )


@app.command()
def info(store: str = typer.Argument(..., help="Folder or URL of a store.")) -> None:
    """Print the store's manifest as JSON."""
    from cellfoundry_data.store import open_store

    typer.echo(json.dumps(open_store(store).manifest, indent=2, ensure_ascii=False))


@app.command()
def verify(store: str = typer.Argument(..., help="Folder or URL of a store.")) -> None:
    """Check every checksum; name each damaged shard and exit 2 if there is one."""
    from cellfoundry_data.store import verify as run_verify

    with ProgressDisplay() as progress:
        report = run_verify(store, progress=progress)
    if report.bad:
        for problem in report.bad:
            typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(2)
    typer.echo(f"{store}: {report.files:,} files checked, all as written")


@app.command()
def report(
    store: str = typer.Argument(..., help="Folder or URL of a store."),
    out: Path | None = typer.Option(None, help="Page to write. Default: STORE/report.html of a folder."),
) -> None:
    """Write the store's report: its sources, what was matched and removed, knee and violin plots."""
    from cellfoundry.report import data_report
    from cellfoundry_data.urls import is_url

    if out is None and is_url(store):
        raise typer.BadParameter("name the page to write: the store lies behind a URL", param_hint="--out")
    page = out or Path(store) / REPORT
    data_report.write(store, page)
    typer.echo(str(page))


@app.command("export")
def export_store(
    store: str = typer.Argument(..., help="Folder or URL of a store."),
    out: Path = typer.Argument(
        ..., help="File to write: .h5ad, .zarr (AnnData) or .parquet (cell, gene, count)."
    ),
) -> None:
    """Write the store's cells as AnnData or as a long Parquet table."""
    from cellfoundry_data.store import export

    with ProgressDisplay() as progress:
        export(store, out, progress=progress)
    typer.echo(str(out))
