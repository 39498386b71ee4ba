"""A model directory: config.json, model.safetensors and vocab.tsv, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from cellfoundry_model.architecture import CellModel
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.errors import ModelError
from cellfoundry_model.head_files import HEAD_FILES

FORMAT = "cellfoundry-model"
FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE = "config.json", "model.safetensors", "vocab.tsv"

OWN_FILES = {
    *(CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE),
    *HEAD_FILES,
    *("finetune.json", "report.html"),  # of fine-tuning
    # of exports, which may go beside the weights
    *("model.onnx", "decoder.onnx", "model.plan", "model.plan.json", "MODEL_CARD.md"),
}
"""All that the layers write into a model directory, and so may replace."""


@dataclass(frozen=True)
class LoadedModel:
    """A model as read from its directory.

    Attributes:
        model: in eval mode, on the asked device.
        config: its sizes.
        vocab_genes: gene names in position order.
        info: free facts about it; always vocabulary_sha256 and weights_sha256 (the model's hash).
    """

    model: CellModel
    config: ModelConfig
    vocab_genes: tuple[str, ...]
    info: dict[str, Any]


def save_model(
    model: CellModel,
    vocab_genes: Sequence[str],
    out_dir: str | Path,
    extra: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Write ``model`` as a directory and return its info: ``extra`` and the hashes of vocabulary and weights.

    The directory appears at once, with ``files`` (name -> content) in it. An existing one is replaced only if it is
    empty or a model directory without other files; ModelError otherwise, or when the vocabulary has another length
    than the model.
    """
    out = Path(out_dir).absolute()
    _check_vocabulary_length(vocab_genes, model.config, "the given vocabulary")
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        staging.chmod(0o755)
        state = {
            name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()
        }
        safetensors.torch.save_file(state, staging / WEIGHTS_FILE)
        (staging / VOCABULARY_FILE).write_text(_vocabulary_text(vocab_genes), encoding="utf-8")
        info = dict(extra) | {
            "vocabulary_sha256": vocabulary_hash(vocab_genes),
            "weights_sha256": _file_hash(staging / WEIGHTS_FILE),
        }
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "architecture": model.config.to_dict(),
            "info": info,
        }
        (staging / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        for name, content in (files or {}).items():
            (staging / name).write_bytes(content)
        for path in (*staging.iterdir(), staging):
            _to_disk(path)
        _replace_directory(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return info


def load_model(model_dir: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Read a model directory onto ``device``; ModelError names a file that is missing, damaged or foreign."""
    folder = Path(model_dir)
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: no such model directory; give a folder made by `model import` or training."
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE, VOCABULARY_FILE):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: {name} is missing from this model directory; make the model again.")
    config, info = read_config(folder / CONFIG_FILE)
    genes = _read_vocabulary(folder / VOCABULARY_FILE)
    _check_vocabulary_length(genes, config, str(folder / VOCABULARY_FILE))
    if info.get("vocabulary_sha256") != vocabulary_hash(genes):
        raise ModelError(f"{folder / VOCABULARY_FILE}: not the genes that were saved; copy the file again.")
    weights_path = folder / WEIGHTS_FILE
    if info.get("weights_sha256") != _file_hash(weights_path):
        raise ModelError(f"{weights_path}: not the weights that were saved; copy the file again.")
    try:
        weights = safetensors.torch.load_file(weights_path)
    except SafetensorError as error:
        raise ModelError(f"{weights_path}: not a safetensors file ({error}); copy it again.") from error
    model = CellModel(config)
    load_weights(model, weights, str(weights_path))
    return LoadedModel(model.to(device).eval(), config, genes, info)


def load_weights(
    model: CellModel,
    weights: Mapping[str, torch.Tensor],
    source: str,
    source_names: Mapping[str, str] | None = None,
) -> None:
    """Fill ``model``; the weights' names are the model's own, or theirs by ``source_names`` (ours to theirs).

    ModelError names the first tensors of ``source`` that are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    theirs = {name: name for name in own} if source_names is None else source_names
    expected = {theirs[name]: tensor for name, tensor in own.items()}
    faults = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "wrong shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    described = "; ".join(f"{kind}: {_first_few(names)}" for kind, names in faults.items() if names)
    if described:
        raise ModelError(
            f"{source}: its tensors do not fit the architecture its config describes ({described}); "
            "use an intact file of this architecture."
        )
    model.load_state_dict({name: weights[theirs[name]] for name in own})


def vocabulary_hash(genes: Sequence[str]) -> str:
    """sha256 (hex) of the gene names joined by newlines."""
    return hashlib.sha256("\n".join(genes).encode()).hexdigest()


def _first_few(names: Sequence[str], shown: int = 3) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _check_vocabulary_length(genes: Sequence[str], config: ModelConfig, source: str) -> None:
    if len(genes) != config.n_genes:
        raise ModelError(
            f"{source} has {len(genes):,} genes but the model has {config.n_genes:,}; "
            "give the vocabulary the model was trained with."
        )


def check_replaceable(out: Path) -> None:
    """ModelError if a model cannot be saved at ``out`` because something else is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        read_config(out / CONFIG_FILE)
    except ModelError as error:
        raise ModelError(
            f"{out}: exists and is no model directory; give another name or remove it."
        ) from error
    others = sorted(path.name for path in out.iterdir() if path.name not in OWN_FILES)
    if others:
        raise ModelError(
            f"{out}: holds what is not the model's ({_first_few(others)}) and would be lost; move it or give another "
            "name."
        )


def _replace_directory(staging: Path, out: Path) -> None:
    """Put ``staging`` in ``out``'s place; a directory in the way is moved aside first and then removed."""
    if not out.exists():
        staging.replace(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.replace(old)
    staging.replace(out)
    shutil.rmtree(old)


def clear_leftovers(model_dir: Path) -> None:
    """Remove what a killed process left of writing ``model_dir``; the model comes back if it was moved aside."""
    for aside in model_dir.parent.glob(f".{model_dir.name}.old.*"):
        if not model_dir.exists():
            aside.rename(model_dir)
    for leftover in model_dir.parent.glob(f".{model_dir.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, would outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_config(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Sizes and info of a model directory's config.json; ModelError where it is missing, damaged or foreign."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); make the model again.") from error
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error}); make the model again.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ModelError(
            f"{path}: not a CellFoundry model's config; give a folder made by `model import` or training."
        )
    if document.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{path}: format version {document.get('format_version')!r}, but only {FORMAT_VERSION} is read; "
            "update CellFoundry or save the model again."
        )
    architecture, info = document.get("architecture"), document.get("info")
    if not isinstance(architecture, dict) or not isinstance(info, dict):
        raise ModelError(f"{path}: its architecture or info section is missing; make the model again.")
    try:
        return ModelConfig.from_dict(architecture), info
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _vocabulary_text(genes: Sequence[str]) -> str:
    return "gene_name\tindex\n" + "".join(f"{gene}\t{index}\n" for index, gene in enumerate(genes))


def _read_vocabulary(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: not UTF-8 text ({error}); copy the file again.") from error
    return tuple(line.split("\t")[0] for line in lines[1:])


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
