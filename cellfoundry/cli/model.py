"""``cellfoundry model``: import official weights, inspect and export model directories."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

import typer

from cellfoundry.cli.console import ProgressDisplay

app = typer.Typer(
    help="Import official checkpoints; inspect and export model directories.", no_args_is_help=True
)


class Part(StrEnum):
    """Parts of an official checkpoint file."""

    cell = "cell"
    rde = "rde"
    gene = "gene"


class ExportFormat(StrEnum):
    """Formats a model exports to."""

    onnx = "onnx"
    tensorrt = "tensorrt"


class ExportPrecision(StrEnum):
    """Arithmetic of an export."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"


@app.command("import")
def import_checkpoint(
    checkpoint: Path = typer.Argument(..., metavar="CKPT", help="Official scFoundation checkpoint (.ckpt)."),
    out: Path = typer.Option(
        ..., help="Model directory to write: config.json, model.safetensors, vocab.tsv."
    ),
    part: Part | None = typer.Option(
        None,
        help="cell (cell embeddings), rde (read-depth enhancement) or gene (gene embeddings, expression). "
        "Default: the file's only part, else cell.",
    ),
    vocab: str = typer.Option(
        "scfoundation", help="Vocabulary the checkpoint was trained with: a name or a file."
    ),
) -> None:
    """Convert an official checkpoint; the file is read without running any code in it."""
    from cellfoundry_data.vocabulary import load
    from cellfoundry_model.official import import_official

    info = import_official(
        checkpoint, out, vocab_genes=load(vocab).genes, part=part.value if part else None
    ).info
    others = f"; the file also holds {', '.join(info['other_parts'])}" if info["other_parts"] else ""
    typer.echo(f"{out}: part {info['part']}{others}")


@app.command()
def info(model: Path = typer.Argument(..., help="Model directory.")) -> None:
    """Print architecture, parameters, origin and hashes as JSON."""
    from cellfoundry_model.checkpoint import load_model

    loaded = load_model(model)
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    typer.echo(
        json.dumps(
            {"architecture": loaded.config.to_dict(), "parameters": parameters, "info": loaded.info}, indent=2
        )
    )


@app.command()
def export(
    model: Path = typer.Argument(..., help="Model directory."),
    format_: ExportFormat = typer.Option(
        ..., "--format", help="onnx, or tensorrt (needs the extra 'tensorrt')."
    ),
    out: Path = typer.Option(..., help="Directory to write the engine's files to."),
    precision: ExportPrecision | None = typer.Option(
        None,
        help="Arithmetic. Default: fp32 for onnx, fp16 for tensorrt (which has fp16 and bf16). int8 is the encoder's, "
        "for CPUs.",
    ),
    decoder: bool = typer.Option(True, help="onnx: also decoder.onnx, for gene embeddings and expression."),
    calibrate: str | None = typer.Option(
        None,
        metavar="SRC",
        help="int8: counts of real cells like those you will embed. Default: the donor that ships with the package.",
    ),
    timing_cache: Path | None = typer.Option(
        None, help="tensorrt: file with what builds measured. Default: in your cache folder."
    ),
    triton: Path | None = typer.Option(
        None,
        metavar="REPOSITORY/NAME",
        help="Also add the export, as the next version, to this model of a Triton Inference Server repository.",
    ),
) -> None:
    """Export a model for another engine; what this machine can run of it is compared with torch first."""
    from cellfoundry_serving.export import export_model

    with ProgressDisplay() as progress:
        report = export_model(
            model,
            out,
            format_.value,
            precision=precision.value if precision else None,
            decoder=decoder,
            calibrate=calibrate,
            timing_cache=timing_cache,
            triton=triton,
            progress=progress,
        )
    typer.echo(f"{out}: {report.summary()}")
