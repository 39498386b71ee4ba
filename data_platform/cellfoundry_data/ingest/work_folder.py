"""What an unfinished ingest keeps beside its store, so that it can be killed anywhere and goes on.

A task writes into a folder of its own and renames it when all of it is on the disk: what has its final name is
complete. Names hold a fingerprint of everything that decides the content, so that leftovers of other arguments
or of a source that has changed since are never taken for this ingest's.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellfoundry_data.store.format import MANIFEST
from cellfoundry_data.store.replace import remove, retire, sync, sync_tree

TMP = "tmp"


class WorkFolder:
    """The locked folder ``.NAME.partial``.

    Attributes:
        path: where it is.
        store: the store that is written.
        parts: finished parts of sources, a folder each.
    """

    def __init__(self, path: Path, store: Path) -> None:
        self.path = path
        self.store = store
        self.parts = path / "parts"

    def is_empty(self) -> bool:
        """Whether nothing is there that the next ingest could use."""
        inside = [path for path in _listed(self.path) if path != self.parts]
        return all(_is_unfinished(path) for path in [*inside, *_listed(self.parts)])

    def keep_only(self, names: set[str]) -> bool:
        """Remove what is not called one of ``names``; whether that was finished work."""
        removed = False
        for path in [*_listed(self.path), *_listed(self.parts)]:
            if path.name in names or path == self.parts:
                continue
            removed |= not _is_unfinished(path)
            if (path / MANIFEST).exists():
                retire(path, self.store)  # what a killed ingest has just replaced: a reader may hold it
            else:
                remove(path)
        return removed

    def remove(self) -> None:
        """Remove everything."""
        self.keep_only(set())
        remove(self.path)


def _is_unfinished(path: Path) -> bool:
    return path.name == TMP or path.name.startswith(".")


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


@contextmanager
def scratch_folder(work: Path) -> Iterator[Path]:
    """An empty folder on the disk of ``work`` that is removed after the block."""
    folder = work / TMP / uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remove(folder)


@contextmanager
def committed(target: Path, work: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``target``, written out to the disk, when the block ends well."""
    with scratch_folder(work) as scratch:
        folder = scratch / target.name
        folder.mkdir()
        yield folder
        sync_tree(folder)
        put(folder, target)


def put(path: Path, target: Path) -> None:
    """Rename ``path`` to ``target``. A folder that is there already stays: names stand for content, so a task
    that was lost and ran on has made the same.
    """
    try:
        path.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    sync(target.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as JSON, atomically and out to the disk."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def fingerprint(*values: Any) -> str:
    """16 hex digits that stand for JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
