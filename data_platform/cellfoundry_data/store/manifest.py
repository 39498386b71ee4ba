"""manifest.json: the one file that decides which store a reader sees; its first line is its own checksum."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, get_args

from cellfoundry_data.errors import DataError
from cellfoundry_data.store.format import (
    FORMAT,
    MANIFEST,
    VERSION,
    VOCABULARY,
    Profile,
    Values,
    damaged,
    is_frame_file,
)

_FIRST_LINE = re.compile(rb'\{"sha256": "([0-9a-f]{64})",')
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIZES = ("cells", "genes", "nnz", "shards", "array_bytes")
MAX_GENES = 2**31 - 1


def to_bytes(manifest: dict[str, Any]) -> bytes:
    """The manifest as a file: JSON whose first line holds the SHA-256 of all that follows that line."""
    manifest = {key: value for key, value in manifest.items() if key != "sha256"}
    rest = json.dumps(manifest, indent=1, ensure_ascii=False).removeprefix("{\n").encode()
    return b'{"sha256": "%s",\n' % hashlib.sha256(rest).hexdigest().encode() + rest


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Put the manifest in place in one step, on disk before it has its name."""
    temporary = folder / f".{MANIFEST}.{os.getpid()}.tmp"
    with temporary.open("wb") as file:
        file.write(to_bytes(manifest))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)


def parse(content: bytes, store: object) -> dict[str, Any]:
    """The manifest in ``content``, after its format, version, checksum and all that a reader relies on held;
    DataError otherwise. ``sha256`` is the digest that was checked.
    """
    try:
        manifest = json.loads(content)
        name, version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(store, "the manifest", f"{MANIFEST} is not readable") from error
    if name != FORMAT:
        raise DataError(f"{store} is not a CellFoundry store: its {MANIFEST} says format {name!r}.")
    if version != VERSION:
        raise DataError(
            f"{store} is a store of format version {version} and this CellFoundry reads version {VERSION}: "
            "ingest its sources again with this CellFoundry, or use the one that wrote it."
        )
    first, _, rest = content.partition(b"\n")
    digest = _FIRST_LINE.fullmatch(first)
    if digest is None or digest[1].decode() != hashlib.sha256(rest).hexdigest():
        raise damaged(store, "the manifest", f"the checksum of {MANIFEST} differs")
    manifest["sha256"] = digest[1].decode()  # a second key of that name would have won
    wrong = _problem(manifest)
    if wrong:
        raise damaged(store, "the manifest", wrong)
    return manifest


def _problem(manifest: dict[str, Any]) -> str | None:
    """What no writer would have written, in what a reader opens, allocates by or decodes with."""
    for name in _SIZES:
        if not _is_size(manifest.get(name)):
            return f"{name} is no size"
    if not 1 <= manifest["genes"] <= MAX_GENES:
        return f"genes is not between 1 and {MAX_GENES:,}"
    if type(manifest.get("seed")) is not int:
        return "seed is no whole number"
    for name, allowed in (("values", get_args(Values)), ("profile", get_args(Profile))):
        if manifest.get(name) not in allowed:
            return f"{name} is none of {', '.join(allowed)}"
    vocabulary, sources, files = manifest.get("vocabulary"), manifest.get("sources"), manifest.get("files")
    if not isinstance(vocabulary, dict) or vocabulary.get("file") != VOCABULARY:
        return f"the vocabulary is not in {VOCABULARY}"
    if not _is_sha256(vocabulary.get("hash")):
        return "the vocabulary has no hash"
    if not isinstance(manifest.get("qc"), dict):
        return "qc is no object"
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        return "sources is no list of objects"
    if not isinstance(files, list) or not all(map(_is_file, files)):
        return "files is no list of the files that a store has outside its shards"
    if len({file["path"] for file in files}) < len(files):
        return "files has a file twice"
    return None


def _is_file(entry: object) -> bool:
    """Whether ``entry`` describes a file of the frame: path, size and sha256, and nothing else."""
    return (
        isinstance(entry, dict)
        and entry.keys() == {"path", "size", "sha256"}
        and isinstance(entry["path"], str)
        and is_frame_file(entry["path"])
        and _is_size(entry["size"])
        and _is_sha256(entry["sha256"])
    )


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _is_sha256(text: object) -> bool:
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None
