"""MODEL_CARD.md: what an export is, in the words of its own files; nothing is said that they do not hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_serving.export.check import Comparison, floor_digits
from cellfoundry_serving.export.layout import (
    CARD_FILE,
    CONFIG_FILE,
    DECODER_FILE,
    ONNX_FILE,
    PLAN_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
)
from cellfoundry_serving.told_facts import told

HASHES = ("weights_sha256", "vocabulary_sha256")
ROLES = {
    ONNX_FILE: "tokens to cell embeddings (ONNX)",
    DECODER_FILE: "token embeddings to gene embeddings and expression (ONNX)",
    PLAN_FILE: "tokens to cell embeddings (TensorRT, for one GPU and version)",
    WEIGHTS_FILE: "the weights (torch)",
    CONFIG_FILE: "architecture, origin and hashes",
    VOCABULARY_FILE: "gene names in position order",
}


def write_card(
    loaded: LoadedModel,
    precision: str,
    staging: Path,
    out: Path,
    comparisons: Sequence[Comparison],
    note: str,
    built: str = "",
) -> None:
    """Writes the card of the export in ``staging``; what one in ``out`` says of another engine's file stays."""
    stays = set(ROLES) if (staging / PLAN_FILE).exists() else set(ROLES) - {DECODER_FILE}
    files = [name for name in ROLES if (staging / name).exists() or (name in stays and (out / name).exists())]
    old = read_sections(out / CARD_FILE)
    sections = []
    for name in (ONNX_FILE, PLAN_FILE):
        if (staging / name).exists():
            decoder = (staging / DECODER_FILE).exists()
            sections.append(export_section(loaded, name, precision, decoder, comparisons, note, built))
        elif name in files:
            sections.append(f"## {name}\n\n{old.get(name, 'An older export, whose card is missing.')}\n")
    (staging / CARD_FILE).write_text(model_card(loaded, files, sections), encoding="utf-8")


def read_sections(card: Path) -> dict[str, str]:
    """Text of each section of a card by its title; empty where there is no card."""
    if not card.is_file():
        return {}
    parts = card.read_text(encoding="utf-8", errors="replace").split("\n## ")[1:]
    titles_texts = (part.partition("\n") for part in parts)
    return {title: text.strip() for title, _, text in titles_texts}


def model_card(loaded: LoadedModel, files: list[str], sections: list[str]) -> str:
    """The card's text, markdown: ``sections`` are those of the exports."""
    config, info = loaded.config, loaded.info
    sizes = "\n".join(f"| {name} | {value:,} |" for name, value in config.to_dict().items())
    origin = "\n".join(
        f"| {name} | {shown(value)} |" for name, value in told(info).items() if name not in HASHES
    )
    limits = [
        f"Only the {config.n_genes:,} genes of `{VOCABULARY_FILE}` are seen; others are left out.",
        "Cells without counts in these genes have no embedding.",
    ]
    if DECODER_FILE not in files:
        limits.append("The exports give no gene embeddings and no expression: the decoder is in none.")
    return f"""# Model card

An scFoundation-style model (a transformer over a cell's expressed genes, a linear-attention decoder over all genes).

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

{chr(10).join(sections)}
## Limits

{chr(10).join(f"- {limit}" for limit in limits)}
"""


def export_section(
    loaded: LoadedModel,
    engine_file: str,
    precision: str,
    decoder: bool,
    comparisons: Sequence[Comparison],
    note: str,
    built: str,
) -> str:
    """What one export holds and how it compares with torch."""
    measured = "\n".join(
        f"| {row.output} | {row.cells} | {row.max_error:.1e} | {row.scale:.3g} | {floor_digits(row.min_cosine)} |"
        for row in comparisons
    )
    model = loaded.model
    encoder = (model.value_embedding, model.position_embedding, model.encoder)
    parameters = sum(
        parameter.numel() for part in ((model,) if decoder else encoder) for parameter in part.parameters()
    )
    parts = "encoder and decoder" if decoder else "encoder"
    return f"""## {engine_file}

The {parts}, {parameters:,} parameters, exported in {precision}.

{chr(10).join(filter(None, [built, note and f"Against torch: {note}.", measured_table(measured)]))}
"""


def measured_table(measured: str) -> str:
    """The comparison's rows under their heads, or that there was none."""
    if not measured:
        return "Not compared with torch: no GPU was there to run it."
    return (
        "Cosine is the smallest between two vectors: a cell's embeddings, a gene's in one cell, a cell's expression."
        "\n\n"
        f"| output | cells | max error | largest number | cosine at least |\n|---|---|---|---|---|\n{measured}"
    )


def shown(value: Any) -> str:
    """A fact in a table's cell, on one line."""
    return str(value).replace("|", "\\|").replace("\n", " ")
