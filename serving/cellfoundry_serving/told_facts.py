"""Which facts about a model others may be told, in its card and by the endpoint."""

from __future__ import annotations

from typing import Any

from cellfoundry_model.head_files import HEAD_HASH

TOLD = (
    "weights_sha256",
    "vocabulary_sha256",
    HEAD_HASH,
    "part",
    "steps",
    "training_cells",
    "cells_seen",
    "heldout_loss",
    "gene_mean_loss",
    "plain_gene_mean_loss",
    "config_hash",
)
"""The rest is free text or a run's whole configuration: both may hold paths and addresses of the owner's."""


def told(info: dict[str, Any]) -> dict[str, Any]:
    """Those of a model's facts that may be told, in one order."""
    return {name: info[name] for name in TOLD if name in info}
