"""The last step of an ingest, in which readers get to see the new store, and how it goes on after a kill."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cellfoundry_data.ingest.work_folder import WorkFolder, write_json
from cellfoundry_data.store.format import MANIFEST
from cellfoundry_data.store.replace import publish, publish_additions

READY = "ready.json"


@dataclass(frozen=True)
class _Ready:
    """A finished build on its way to the store's place.

    Attributes:
        request: fingerprint of what ``ingest`` was called with.
        build: name of the folder that was built.
        inode: of that folder, by which it is known wherever it lies.
        manifest: digest of its manifest.
        base: digest of the manifest that it adds to; "" where it replaces the store.
    """

    request: str
    build: str
    inode: int
    manifest: str
    base: str


def publish_build(work: WorkFolder, build: Path, request: str, base: str) -> None:
    """Put the finished ``build`` in the store's place or, with a ``base``, its additions into the store."""
    ready = _Ready(request, build.name, build.stat().st_ino, manifest_digest(build), base)
    write_json(work.path / READY, asdict(ready))
    _go_on(work, ready)


def resume_publishing(work: WorkFolder, request: str) -> bool:
    """Finish what a kill interrupted; whether the store of this ``request`` stands now."""
    try:
        ready = _Ready(**json.loads((work.path / READY).read_bytes()))
    except FileNotFoundError:
        return False
    return ready.request == request and _go_on(work, ready)


def manifest_digest(store: Path) -> str:
    """SHA-256, hex, of a store's manifest; "" where there is none."""
    try:
        return hashlib.sha256((store / MANIFEST).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _go_on(work: WorkFolder, ready: _Ready) -> bool:
    build, store = work.path / ready.build, work.store
    if ready.base:
        if manifest_digest(store) == ready.base:
            publish_additions(build, store)
        return manifest_digest(store) == ready.manifest
    if build.exists() and build.stat().st_ino == ready.inode:
        publish(build, store)
    return store.exists() and store.stat().st_ino == ready.inode
