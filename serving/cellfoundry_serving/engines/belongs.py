"""An engine's file and the config and vocabulary beside it must be of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.checkpoint import read_config
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import CONFIG_FILE, VOCABULARY_FILE


def check_belongs(facts: dict[str, Any], folder: Path, file: str) -> Vocabulary:
    """The folder's vocabulary; ServingError where ``facts``, which ``file`` carries, are of another model.

    Raises:
        ServingError: another vocabulary, architecture or other weights.
        ModelError, DataError: config or vocabulary missing or damaged.
    """
    config, info = read_config(folder / CONFIG_FILE)
    vocabulary = Vocabulary.from_file(folder / VOCABULARY_FILE)
    if vocabulary.hash != facts["info"]["vocabulary_sha256"]:
        raise ServingError(f"{folder / VOCABULARY_FILE}: not the genes of {file}; export the model again.")
    if (
        info.get("weights_sha256") != facts["info"]["weights_sha256"]
        or config.to_dict() != facts["architecture"]
    ):
        raise ServingError(f"{folder / CONFIG_FILE}: not the model of {file}; export the model again.")
    return vocabulary
