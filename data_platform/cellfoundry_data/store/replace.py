"""Publishing a store: readers see the old one or the new one, whole, whatever is killed when.

A writer builds in the hidden folder ``.NAME.partial`` beside the store, which it keeps locked. A finished store
takes its place by one rename; shards that are added to a live store are moved in under names its manifest does
not know, and then the manifest is replaced.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellfoundry_data.errors import DataError
from cellfoundry_data.store.format import FORMAT, MANIFEST, is_qc_file

AT_FDCWD = -100
RENAME_EXCHANGE = 2
LATE_WRITES_S = 10.0


@contextmanager
def replacing_store(store: Path) -> Iterator[Path]:
    """Give an empty folder to build in; when the block ends well it takes the place of ``store``, old store
    or nothing.

    When the block fails the folder goes and ``store`` stays as it was.

    Raises:
        DataError: ``store`` exists and is not a CellFoundry store, or another process is writing it.
    """
    store = store.resolve()
    refuse_foreign_folder(store)
    with work_folder(store) as work:
        clear(work)
        try:
            folder = work / "store"
            folder.mkdir()
            yield folder
            publish(folder, store)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def work_folder(store: Path) -> Iterator[Path]:
    """Lock the folder in which the next ``store`` is built, ``.NAME.partial`` beside it, and give it with what
    a writer before left in it.

    It stays when the block ends, unless the block removes it. Old stores that were kept for their readers are
    removed once nobody reads them.

    Raises:
        DataError: another process is writing this store.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    work = store.parent / f".{store.name}.partial"
    lock = locked_folder(
        work, f"another process is writing the store {store}: wait for it, or choose another --store."
    )
    try:
        for old in store.parent.glob(f".{store.name}.old-*"):
            _remove_unread(old)
        yield work
    finally:
        os.close(lock)


def locked_folder(work: Path, busy: str) -> int:
    """Descriptor of ``work``, locked until it is closed; made where it is missing. DataError(``busy``) where another
    process has it.
    """
    while True:
        work.mkdir(exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The writer before may have removed the folder between our opening and locking it.
            if work.exists() and os.path.samestat(os.fstat(lock), work.stat()):
                return lock
        except BlockingIOError as error:
            os.close(lock)
            raise DataError(busy) from error
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


def clear(folder: Path) -> None:
    """Remove what is in ``folder``."""
    for path in folder.iterdir():
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing there is fine.

    A write that was under way when its run failed may still add a file: zarr writes in threads, and Ray ends tasks
    after it has raised. Such writes end within milliseconds; they are waited for up to ``LATE_WRITES_S``.
    """
    end = time.monotonic() + LATE_WRITES_S
    while True:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or time.monotonic() > end:
                raise
        time.sleep(0.01)


def publish(folder: Path, store: Path) -> None:
    """Put the finished store ``folder`` at ``store``, in one step where the system can.

    The old store is removed once no reader holds it: now, or by the next writer.
    """
    sync_tree(folder)
    if not store.exists():
        folder.rename(store)
    elif exchange(folder, store):
        retire(folder, store)
    else:
        old = _free_name(store)
        store.rename(old)
        folder.rename(store)
        _remove_unread(old)
    sync(store.parent)


def publish_additions(folder: Path, store: Path) -> None:
    """Move what ``folder`` has into the live ``store``, under names its manifest does not know, and then the
    manifest.

    Readers keep to the manifest they opened. Called again after a kill, it goes on where it stopped.
    """
    sync_tree(folder)
    _move(folder, store)
    sync_folders(store)
    (folder / MANIFEST).replace(store / MANIFEST)
    sync(store)


def remove_unlisted(store: Path, listed: set[str]) -> None:
    """Remove shards and other files of a live ``store`` that its manifest does not list (``listed``: paths
    relative to the store): what a killed writer moved in without getting to the manifest.

    Only in the store's own folders: what a user keeps beside them stays.
    """
    for path in store.iterdir():
        if path.name not in listed and is_qc_file(path.name):
            path.unlink()
    for top in {path.partition("/")[0] for path in listed if "/" in path}:
        for folder, _, files in os.walk(store / top, topdown=False):
            for name in files:
                path = Path(folder) / name
                if path.relative_to(store).as_posix() not in listed:
                    path.unlink()
            if not any(Path(folder).iterdir()):
                Path(folder).rmdir()


def retire(folder: Path, store: Path) -> None:
    """Remove ``folder``, an old version of ``store``, or set it aside for the readers that hold it."""
    old = _free_name(store)
    folder.rename(old)
    _remove_unread(old)


def sync(path: Path) -> None:
    """Have the system write a file or a folder's names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have the system write everything below ``folder`` to the disk."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent) / name)
    sync_folders(folder)


def sync_folders(folder: Path) -> None:
    """Have the system write the names in ``folder`` and the folders in it to the disk."""
    for parent, _, _ in os.walk(folder):
        sync(Path(parent))


def _move(folder: Path, target: Path) -> None:
    """Move files and whole folders; the manifest stays, and files of the frame replace equal ones."""
    for path in folder.iterdir():
        there = target / path.name
        if path.is_dir() and there.is_dir():
            _move(path, there)
        elif path.name != MANIFEST:
            path.replace(there)


def _free_name(store: Path) -> Path:
    names = (store.parent / f".{store.name}.old-{number}" for number in itertools.count())
    return next(name for name in names if not name.exists())


def _remove_unread(old: Path) -> None:
    """Remove an old store unless a reader holds it; readers keep a shared lock on its folder."""
    lock = os.open(old, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(old)
    finally:
        os.close(lock)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically (Linux ``renameat2``); False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0
