"""Whether a model's decoder still fits its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def encoder_tuning(info: Mapping[str, Any]) -> str | None:
    """How the encoder learned ("last", "full" or "lora") in the last fine-tuning that changed it, after which the
    decoder no longer fits; None where none did: with "head" the encoder stays as it is.

    Args:
        info: what the model directory's ``config.json`` says of the model's making.
    """
    record = info.get("finetuned")
    while record:
        tune = str(record["config"]["tune"])
        if tune != "head":
            return tune
        record = record.get("before")
    return None
