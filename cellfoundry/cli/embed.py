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
    source: Path = typer.Argument(
        ...,
        metavar="SRC",
        help=".h5ad, .zarr (AnnData), 10x .h5 or mtx folder, .csv/.tsv (cells x genes), .npy/.npz with the "
        "vocabulary's columns, or a store.",
    ),
    model: Path = typer.Option(..., help="Model directory (or the directory of an export)."),
    out: Path = typer.Option(..., help="File to write: .h5ad, .npy, .parquet or .zarr."),
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
        Precision.fp32, help="bf16 is for GPUs; it is off by about 1 % of the largest number."
    ),
    layer: str | None = typer.Option(
        None,
        help="Matrix to read: X, raw or a layer's name. Default: the first that holds whole counts; X with "
        "--pre-normalized.",
    ),
) -> None:
    """Embed every cell; rows keep the source's order, cells without counts become NaN."""
    from cellfoundry_serving.embed import embed as run_embed

    with ProgressDisplay() as progress:
        summary = run_embed(
            source,
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
            progress=progress,
        )
    typer.echo(f"{out}: {summary}")
