"""A store appears whole or not at all: it is built in a hidden folder beside its place and renamed."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellfoundry_data.errors import DataError
from cellfoundry_data.store.format import FORMAT, MANIFEST

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def replacing_store(store: Path) -> Iterator[Path]:
    """Give an empty folder to build in; when the block ends well it takes the place of ``store``, old store
    or nothing.

    When the block fails the folder goes and ``store`` stays as it was. What a killed writer left is cleared
    by the next one; a writer that still runs keeps its folder locked.

    Raises:
        DataError: ``store`` exists and is not a CellFoundry store, or another process is writing it.
    """
    store = store.resolve()
    refuse_foreign_folder(store)
    store.parent.mkdir(parents=True, exist_ok=True)
    partial = store.parent / f".{store.name}.partial"
    partial.mkdir(exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"another process is writing the store {store}: wait for it, or choose another --store."
            ) from error
        try:
            _clear(partial)
            yield partial
            _swap_in(partial, store)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)


def refuse_foreign_folder(store: Path) -> None:
    """Raise DataError where something other than a store or an empty folder lies at ``store``."""
    if not store.exists():
        return
    if store.is_dir():
        if not any(store.iterdir()):
            return
        try:
            if json.loads((store / MANIFEST).read_bytes())["format"] == FORMAT:
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass
    raise DataError(
        f"{store} exists and is not a CellFoundry store, so it is not overwritten: "
        "choose another folder or remove it first."
    )


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _swap_in(partial: Path, store: Path) -> None:
    """Put ``partial`` at ``store``, in one step where the system can; what was there ends at ``partial``."""
    if not store.exists():
        partial.rename(store)
    elif not _exchange(partial, store):
        old = store.parent / f".{store.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        store.rename(old)
        partial.rename(store)
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically (Linux ``renameat2``); False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0
