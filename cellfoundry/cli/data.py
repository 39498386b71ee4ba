"""``cellfoundry data``: sources into a shard store, and what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from cellfoundry.cli.console import ProgressDisplay

app = typer.Typer(
    help="Ingest counts into a shard store; inspect, verify and export it.", no_args_is_help=True
)


@app.command()
def ingest(
    sources: list[str] = typer.Argument(
        ...,
        metavar="SRC",
        help="Raw counts: .h5ad, .zarr (AnnData), 10x .h5 or mtx folder, .csv/.tsv (cells x genes), .npy/.npz.",
    ),
    store: Path = typer.Option(
        ..., help="Folder of the store to write; an existing store is replaced when done."
    ),
    vocab: str = typer.Option(
        "scfoundation", help="Gene vocabulary: a shipped name, or a file with a gene column."
    ),
    min_genes: int = typer.Option(200, min=0, help="Drop cells with fewer expressed vocabulary genes."),
    seed: int = typer.Option(0, help="Seed of the global shuffle; the same seed gives the same store."),
    layer: str | None = typer.Option(None, help="Matrix to read: a layer's name or 'raw'. Default: X."),
) -> None:
    """Align counts to the vocabulary, filter cells, shuffle them and write a sharded store with Ray Data."""
    from cellfoundry_data.ingest import ingest as run_ingest

    with ProgressDisplay() as progress:
        manifest = run_ingest(
            sources, str(store), vocab=vocab, min_genes=min_genes, seed=seed, layer=layer, progress=progress
        )
    typer.echo(
        f"{store}: {manifest['cells']:,} cells x {manifest['genes']:,} genes, {manifest['nnz']:,} non-zeros"
    )


@app.command()
def info(store: Path = typer.Argument(..., help="Folder of a store.")) -> None:
    """Print the store's manifest as JSON (checksums left out)."""
    from cellfoundry_data.store import open_store

    manifest = dict(open_store(store).manifest)
    manifest["shards"] = len(manifest["shards"])
    typer.echo(json.dumps(manifest, indent=2))


@app.command()
def verify(store: Path = typer.Argument(..., help="Folder of a store.")) -> None:
    """Check every checksum; name each damaged shard and exit 2 if there is one."""
    from cellfoundry_data.store import verify as run_verify

    with ProgressDisplay() as progress:
        report = run_verify(store, progress=progress)
    if report.bad:
        for problem in report.bad:
            typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(2)
    typer.echo(f"{store}: {report.files:,} files checked, all as written")


@app.command("export")
def export_store(
    store: Path = typer.Argument(..., help="Folder of a store."),
    out: Path = typer.Argument(
        ..., help="File to write: .h5ad, .zarr (AnnData) or .parquet (cell, gene, count)."
    ),
) -> None:
    """Write the store's cells as AnnData or as a long Parquet table."""
    from cellfoundry_data.store import export

    with ProgressDisplay() as progress:
        export(store, out, progress=progress)
    typer.echo(str(out))
