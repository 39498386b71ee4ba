"""A head inside a model directory: ``head.json`` (what it predicts) and ``head.safetensors`` (its weights)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from cellfoundry_model.errors import ModelError
from cellfoundry_model.head import Head, HeadConfig

HEAD_FILES = HEAD_CONFIG_FILE, HEAD_WEIGHTS_FILE = "head.json", "head.safetensors"
HEAD_HASH = "head_sha256"
"""Key of a model's info: the hash of both files, which ties a head to the weights that were saved with it."""

FORMAT, FORMAT_VERSION = "cellfoundry-head", 1


def head_files(head: Head) -> dict[str, bytes]:
    """Name -> content of the files that keep ``head``."""
    document = {"format": FORMAT, "format_version": FORMAT_VERSION} | head.config.to_dict()
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    return {
        HEAD_CONFIG_FILE: (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(),
        HEAD_WEIGHTS_FILE: safetensors.torch.save(state),
    }


def head_hash(files: Mapping[str, bytes]) -> str:
    """sha256 (hex) of the two files of ``head_files``."""
    return hashlib.sha256(files[HEAD_CONFIG_FILE] + files[HEAD_WEIGHTS_FILE]).hexdigest()


def load_head(model_dir: str | Path, info: Mapping[str, Any]) -> Head:
    """The head of a model directory, or of an export of it, on the CPU and in eval mode.

    Args:
        model_dir: the directory.
        info: of the model in it, which says what the head's hash must be.

    Raises:
        ModelError: the model has no head, or its files are missing, damaged or another model's.
    """
    folder = Path(model_dir)
    if HEAD_HASH not in info:
        raise ModelError(
            f"{folder}: the model has no head, so it predicts no label; make one with `cellfoundry train finetune`."
        )
    for name in HEAD_FILES:
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: {name} is missing from this model directory; make the model again.")
    files = {name: (folder / name).read_bytes() for name in HEAD_FILES}
    if head_hash(files) != info[HEAD_HASH]:
        raise ModelError(
            f"{folder}: {HEAD_CONFIG_FILE} and {HEAD_WEIGHTS_FILE} are not those that were saved with this model; "
            "copy both again."
        )
    head = Head(_read_config(folder / HEAD_CONFIG_FILE, files[HEAD_CONFIG_FILE]))
    try:
        head.load_state_dict(safetensors.torch.load(files[HEAD_WEIGHTS_FILE]))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder / HEAD_WEIGHTS_FILE}: not the weights of {HEAD_CONFIG_FILE} ({reason}); make the model again."
        ) from error
    return head.eval()


def _read_config(path: Path, content: bytes) -> HeadConfig:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error}); make the model again.") from error
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise ModelError(f"{path}: not a CellFoundry head's config; make the model again.")
    if document.pop("format_version", None) != FORMAT_VERSION:
        raise ModelError(
            f"{path}: only format version {FORMAT_VERSION} is read; update CellFoundry or make the model again."
        )
    try:
        return HeadConfig.from_dict(document)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
