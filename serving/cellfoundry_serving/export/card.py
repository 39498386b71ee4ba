"""MODEL_CARD.md: what an export is, in the words of its own files; nothing is said that they do not hold."""

from __future__ import annotations

from typing import Any

from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_serving.export.check import Comparison
from cellfoundry_serving.export.layout import CONFIG_FILE, DECODER_FILE, ONNX_FILE, PLAN_FILE, VOCABULARY_FILE

HASHES = ("weights_sha256", "vocabulary_sha256")
ROLES = {
    ONNX_FILE: "tokens to cell embeddings (ONNX)",
    DECODER_FILE: "token embeddings to gene embeddings and expression (ONNX)",
    PLAN_FILE: "tokens to cell embeddings (TensorRT, for one GPU and version)",
    CONFIG_FILE: "architecture, origin and hashes",
    VOCABULARY_FILE: "gene names in position order",
}


def model_card(
    loaded: LoadedModel, precision: str, files: list[str], comparisons: list[Comparison], note: str
) -> str:
    """The card's text, markdown."""
    config, info = loaded.config, loaded.info
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    sizes = "\n".join(f"| {name} | {value:,} |" for name, value in config.to_dict().items())
    origin = "\n".join(f"| {name} | {shown(value)} |" for name, value in info.items() if name not in HASHES)
    measured = "\n".join(
        f"| {row.output} | {row.cells} | {row.max_error:.1e} | {row.scale:.3g} | {row.min_cosine:.7f} |"
        for row in comparisons
    )
    limits = [
        f"Only the {config.n_genes:,} genes of `{VOCABULARY_FILE}` are seen; others are left out.",
        "Cells without counts in these genes have no embedding.",
    ]
    if DECODER_FILE not in files:
        limits.append("No gene embeddings and no expression: the decoder was not exported.")
    return f"""# Model card

An scFoundation-style model (a transformer over a cell's expressed genes, a linear-attention decoder over all genes),
exported in {precision}. It has {parameters:,} parameters.

## Use

Embeddings of cells from single-cell (or bulk) RNA counts, to cluster, search, annotate or train small models on.
They are research data, not a diagnosis.

| file | what it is |
|---|---|
{chr(10).join(f"| `{name}` | {ROLES[name]} |" for name in files)}

## Architecture

| size | value |
|---|---|
{sizes}

## Origin

| fact | value |
|---|---|
{origin or "| none recorded | |"}

Weights (sha256): `{info["weights_sha256"]}`
Vocabulary (sha256): `{info["vocabulary_sha256"]}`

## Compared with torch

{chr(10).join(filter(None, [note, measured_table(measured)]))}

## Limits

{chr(10).join(f"- {limit}" for limit in limits)}
"""


def measured_table(measured: str) -> str:
    """The comparison's rows under their heads, or that there was none."""
    if not measured:
        return "Not compared: no GPU was there to run it."
    return (
        "Cosine is the smallest between two vectors: a cell's embeddings, a gene's in one cell, a cell's expression."
        "\n\n"
        f"| output | cells | max error | largest number | cosine at least |\n|---|---|---|---|---|\n{measured}"
    )


def shown(value: Any) -> str:
    """A fact in a table's cell: nested ones as ``name: value``, on one line."""
    if isinstance(value, dict):
        value = "; ".join(f"{name}: {shown(inner)}" for name, inner in value.items())
    elif isinstance(value, list):
        value = ", ".join(shown(inner) for inner in value)
    return str(value).replace("|", "\\|").replace("\n", " ")
