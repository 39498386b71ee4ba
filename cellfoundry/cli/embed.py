"""``cellfoundry embed``: every cell of a source through a model, in the source's order."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from cellfoundry.cli.console import ProgressDisplay


class Output(StrEnum):
    """What the model is asked for."""

    cell = "cell"
    gene = "gene"
    expression = "expression"


class Pool(StrEnum):
    """How a cell's tokens become one vector."""

    all = "all"
    max = "max"


class InputType(StrEnum):
    """Single cells or bulk samples."""

    singlecell = "singlecell"
    bulk = "bulk"


class PreNormalized(StrEnum):
    """What the matrix holds."""

    F = "F"
    T = "T"
    A = "A"


class EngineName(StrEnum):
    """What runs the model."""

    auto = "auto"
    torch = "torch"
    onnx = "onnx"
    tensorrt = "tensorrt"


class ProviderName(StrEnum):
    """What ONNX Runtime runs on."""

    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"


ENGINE_HELP = (
    "auto takes torch where weights are, else a TensorRT plan that fits this GPU, else ONNX Runtime."
)
PROVIDER_HELP = (
    "ONNX Runtime's: an error where it does not load. Default: cuda where torch sees a GPU, else cpu."
)


class Precision(StrEnum):
    """Arithmetic of the forward pass."""

    fp32 = "fp32"
    bf16 = "bf16"


def embed(
    sources: list[str] = typer.Argument(
        ...,
        metavar="SRC",
        help="Counts: .h5ad, .zarr (AnnData), .loom, 10x .h5 or mtx folder, .csv/.tsv (cells x genes), .parquet "
        "(cell, gene, count), .npy/.npz with the vocabulary's columns, or a store; several, folders and globs of them.",
    ),
    model: Path = typer.Option(..., help="Model directory (or the directory of an export)."),
    out: Path = typer.Option(..., help="Output to write: .h5ad, .npy, .parquet, .arrow or .zarr."),
    output: Output = typer.Option(
        Output.cell,
        help="cell: one vector a cell; gene: one vector a gene and cell; expression: predicted values.",
    ),
    pool: Pool = typer.Option(
        Pool.all,
        help="all: S token, T token, max and mean over genes (4 x width); max: max over all tokens (width).",
    ),
    target: str = typer.Option(
        "t4",
        help="Target depth T: tN = N (log10 counts), fN = N times the cell's total, aN = log10 total + N.",
    ),
    input_type: InputType = typer.Option(InputType.singlecell, help="Single cells or bulk samples."),
    pre_normalized: PreNormalized = typer.Option(
        PreNormalized.F,
        help="F: raw counts; T: values already log-normalised; A: the same with the total count in the last column.",
    ),
    engine: EngineName = typer.Option(EngineName.auto, help=ENGINE_HELP),
    provider: ProviderName | None = typer.Option(None, help=PROVIDER_HELP),
    precision: Precision = typer.Option(
        Precision.fp32,
        help="bf16 is for GPUs and for CPUs with bf16 instructions; its embeddings had a cosine of 0.9999 or "
        "more to those of fp32 where measured.",
    ),
    layer: str | None = typer.Option(
        None,
        help="Matrix to read: X, raw or a layer's name. Default: the first that holds whole counts; X with "
        "--pre-normalized.",
    ),
    genes: str | None = typer.Option(
        None,
        metavar="A,B,C|FILE",
        help="Keep only these genes of gene embeddings or expression: names with commas, or a file with one a line.",
    ),
    mean_by: str | None = typer.Option(
        None,
        metavar="COLUMN",
        help="Write the mean over the cells of each value of this obs column instead of every cell.",
    ),
    shards: bool = typer.Option(
        False,
        "--shards",
        help="Make a .parquet or .arrow output a folder of files of 256 MB of vectors each.",
    ),
    workers: int | None = typer.Option(
        None,
        min=1,
        help="Ray workers, each with the model on a GPU or else on one CPU. Default: one process, or a worker for each "
        "GPU of the cluster that RAY_ADDRESS names.",
    ),
    num_gpus: float | None = typer.Option(
        None, min=0, help="GPUs of each Ray worker (--workers). Default: 1 where the cluster has GPUs."
    ),
    fresh: bool = typer.Option(
        False, "--fresh", help="Start over: use nothing that a killed embedding has left."
    ),
) -> None:
    """Embed every cell; rows keep the source's order, cells without counts become NaN.

    A killed embedding goes on where it stopped when the same command runs again.
    """
    from cellfoundry_serving.embed import embed as run_embed

    with ProgressDisplay() as progress:
        summary = run_embed(
            sources,
            model,
            out,
            output=output.value,
            pool=pool.value,
            target=target,
            input_type=input_type.value,
            pre_normalized=pre_normalized.value,
            engine=engine.value,
            provider=provider.value if provider else None,
            precision=precision.value,
            layer=layer,
            genes=genes,
            mean_by=mean_by,
            shards=shards,
            workers=workers,
            num_gpus=num_gpus,
            fresh=fresh,
            progress=progress,
        )
    typer.echo(f"{out}: {summary}")
