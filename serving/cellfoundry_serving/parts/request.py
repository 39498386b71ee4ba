"""What decides the numbers of an embedding: a work folder goes on only with the request that it was begun for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellfoundry_data.ingest.plan import identity
from cellfoundry_data.readers.location import name_of
from cellfoundry_data.store.format import MANIFEST
from cellfoundry_data.store.manifest import parse
from cellfoundry_data.store_cells import is_store, listed_sources
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.layout import DECODER_FILE, ONNX_FILE, PLAN_FILE

NAMES = {
    "sources": "other sources",
    "model": "another model",
    "engine": "another engine",
    "precision": "another precision",
    "export": "another export of the model",
    "provider": "another --provider",
    "output": "another --output",
    "pool": "another --pool",
    "target": "another --target",
    "input_type": "another --input-type",
    "pre_normalized": "another --pre-normalized",
    "layer": "another --layer",
    "genes": "other --genes",
    "mean_by": "another --mean-by",
    "shards": "or without --shards",
}


def source_identities(source: str | Path | Sequence[str | Path]) -> list[list[str]]:
    """Name and a text that changes with the content, of every source: a store's manifest, sizes and times of files."""
    return [[name_of(path), _identity(path)] for path in listed_sources(source)]


def export_hash(folder: str | Path, engine: str) -> str | None:
    """SHA-256 of the files that an engine opens of an export; None for torch, whose weights say what they are.

    Two exports of one model in int8 differ where they were calibrated on other cells.
    """
    if engine == "torch":
        return None
    names = (PLAN_FILE,) if engine == "tensorrt" else (ONNX_FILE, DECODER_FILE)
    found = hashlib.sha256()
    for path in (Path(folder) / name for name in names):
        if path.is_file():
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def _identity(path: str) -> str:
    if is_store(path):
        return str(parse((Path(path) / MANIFEST).read_bytes(), path)["sha256"])
    return identity(path)[0]


def check_same(begun: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
    """Raises ServingError where an unfinished embedding was begun for something else than is asked now."""
    differing = [name for name in {**begun, **asked} if begun.get(name) != asked.get(name)]
    if not differing:
        return
    what = NAMES.get(differing[0], "another version of CellFoundry")
    if "sources" in differing and _names_of(begun) == _names_of(asked):
        what = "sources that have changed since"
    elif not {"model", "export", "version", "part_cells"} & set(differing):
        raise ServingError(
            f"{out} has an unfinished embedding of {what}: run that command again to finish it, give another --out, or "
            "add --fresh to discard it."
        )
    raise ServingError(
        f"{out} has an unfinished embedding of {what}, which cannot go on: add --fresh to discard it and begin anew."
    )


def _names_of(request: dict[str, Any]) -> list[str]:
    return [name for name, _ in request["sources"] or []]


def check_unchanged(source: Any, identities: list[list[str]] | None, *, stores: bool) -> None:
    """Raises ServingError where a source is not any more what ``source_identities`` said of it.

    ``stores``: of stores too. One that is open shows its readers the version that they opened.
    """
    if identities is None:
        return
    for path, (name, before) in zip(listed_sources(source), identities, strict=True):
        if (stores or not is_store(path)) and _identity(path) != before:
            raise ServingError(
                f"{name} was changed while it was embedded, so its rows would be a mix; run the command again with "
                "--fresh."
            )
