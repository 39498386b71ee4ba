"""A checkpoint on disk: safetensors files and a manifest in one folder, complete or not there.

Every rank writes one file with whole tensors, by name, of its part of the model; rank 0 adds the manifest and renames
the folder to ``step-NNNNNNNNN``. Nothing in it depends on the number of ranks or the ZeRO stage, and nothing is
pickled. docs/pretraining.md has the layout.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from cellfoundry_training.errors import TrainingError
from cellfoundry_training.state import RunState

VERSION = 1
MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{9,})")
DTYPES = {torch.float32: "F32", torch.uint8: "U8"}


class DamagedError(Exception):
    """A checkpoint is not what was written; says which file and how."""


class FileEntry(BaseModel):
    """One file of a checkpoint, as it was written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Inside the checkpoint's folder."""
    bytes: int
    """Its size."""
    sha256: str
    """Of its content, hex."""


class Manifest(BaseModel):
    """What a checkpoint says of itself, beside the tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["cellfoundry-checkpoint"] = "cellfoundry-checkpoint"
    """Tells it from other JSON."""
    version: Literal[1] = 1
    """Of this layout."""
    state: RunState
    """How far the run had come."""
    optimizer_step: int
    """Updates that AdamW has counted for its bias correction."""
    ranks: int
    """Ranks that wrote it, each with a generator of random numbers in the tensors."""
    zero_stage: int
    """DeepSpeed's stage when it was written, for information."""
    config_hash: str
    """Of the configuration, for information."""
    files: tuple[FileEntry, ...]
    """All files but the manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """An intact checkpoint."""

    folder: Path
    manifest: Manifest


def folder_name(step: int) -> str:
    """Of the checkpoint of ``step``."""
    return f"step-{step:09d}"


def listed(checkpoints: Path) -> list[Path]:
    """Folders of all checkpoints, the newest first."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def write_part(folder: Path, rank: int, ranks: int, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Write one rank's tensors (float32 or uint8, on CPU) as safetensors into ``folder``, on the disk on return.

    Written here and not by the library because it would hold a second copy of all tensors, and the checksum would
    take another pass over the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"state-{rank:05d}-of-{ranks:05d}.safetensors"
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in _chunks(tensors):
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    return FileEntry(name=path.name, bytes=size, sha256=digest.hexdigest())


def _chunks(tensors: Mapping[str, Tensor]) -> Iterable[Any]:
    """The bytes of a safetensors file: length of the header (8 bytes, little endian), header, tensors."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for tensor in tensors.values():
        yield tensor.contiguous().view(-1).numpy().data


def publish(partial: Path, folder: Path, manifest: Manifest) -> None:
    """Add the manifest to ``partial``, whose files are complete, and give it its name, in one step.

    A checkpoint of that name, which the run has passed over, is replaced.
    """
    body = manifest.model_dump()
    with (partial / MANIFEST).open("w") as file:
        json.dump({"sha256": _digest(body), **body}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync(partial)
    if folder.exists():
        remove(folder)
    partial.rename(folder)
    _sync(folder.parent)


def remove(folder: Path) -> None:
    """Take a checkpoint away: first its name, so that nobody sees half of it."""
    hidden = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Keep a damaged checkpoint under a name that no run looks for; the new path."""
    aside = folder.with_name(f"damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return aside


def clear_leftovers(checkpoints: Path) -> None:
    """Remove what a killed process began to write or to remove."""
    for path in checkpoints.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """Read and check a checkpoint's manifest.

    Raises:
        DamagedError: it is missing or not as it was written.
        TrainingError: it is of another version of this layout.
    """
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DamagedError(f"{MANIFEST} cannot be read ({_reason(error)})") from None
    if not isinstance(document, dict):
        raise DamagedError(f"{MANIFEST} is not a mapping")
    digest = document.pop("sha256", None)
    if digest != _digest(document):
        raise DamagedError(f"{MANIFEST} has another checksum than when it was written")
    if document.get("version") != VERSION:
        raise TrainingError(
            f"checkpoint {folder} has format version {document.get('version')!r}, but only {VERSION} is read: continue "
            "the run with the CellFoundry that wrote it"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise DamagedError(f"{MANIFEST} is not valid ({_reason(error)})") from None


def check_file(folder: Path, entry: FileEntry) -> None:
    """DamagedError if a file of the checkpoint is missing or not as it was written; reads all of it."""
    path = folder / entry.name
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            raise DamagedError(f"{entry.name} has {size:,} bytes instead of {entry.bytes:,}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedError(f"{entry.name} cannot be read ({_reason(error)})") from None
    if digest != entry.sha256:
        raise DamagedError(f"{entry.name} has another checksum than when it was written")


class Tensors:
    """The tensors of a checkpoint by name, whichever rank wrote them, read one at a time; a context manager."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._folder = checkpoint.folder
        self._files = [
            safetensors.safe_open(checkpoint.folder / entry.name, framework="pt")
            for entry in checkpoint.manifest.files
        ]
        self._file_of: dict[str, Any] = {}

    def __enter__(self) -> Tensors:
        for file in self._files:
            opened = file.__enter__()
            self._file_of |= dict.fromkeys(opened.keys(), opened)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file_of.clear()
        for file in self._files:
            file.__exit__(kind, error, trace)

    def get(self, name: str) -> Tensor:
        """The tensor, on CPU; TrainingError if the checkpoint has none of that name: it is of another model."""
        if name not in self._file_of:
            raise TrainingError(
                f"checkpoint {self._folder} has no {name}: resume with the run's own model settings and CellFoundry"
            )
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor


def _digest(body: Mapping[str, Any]) -> str:
    """Checksum of a manifest's content, however it is spaced."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
