"""What a report says of the model that it used."""

from __future__ import annotations

from typing import Any

from cellfoundry_model.checkpoint import LoadedModel
from cellfoundry_model.decoder_fit import encoder_tuning

RESULT_FILE = "result.json"
"""All numbers of a finished run, beside its report."""
NUMBERS = (
    *("training_cells", "cells_seen", "steps", "heldout_loss", "gene_mean_loss", "gene_start"),
    *("weights_sha256", "config_hash", "origin"),
)


def model_facts(loaded: LoadedModel) -> dict[str, Any]:
    """Size and origin: parameters, layers x width, and of the model's info what it was trained on, where known;
    ``encoder_tuned``: how a fine-tuning changed its encoder."""
    config = loaded.config
    facts: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "encoder": f"{config.encoder_depth} x {config.encoder_width}",
        "decoder": f"{config.decoder_depth} x {config.decoder_width}",
        "genes": config.n_genes,
    }
    if tune := encoder_tuning(loaded.info):
        facts["encoder_tuned"] = tune
    return facts | {name: loaded.info[name] for name in NUMBERS if name in loaded.info}
