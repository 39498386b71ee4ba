"""Outputs appear whole or not at all: work goes to a temporary name beside the target, then is renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellfoundry_data.store.replace import exchange, remove
from cellfoundry_serving.errors import ServingError


def check_parent(target: Path) -> None:
    """Raises ServingError where nothing can be written beside ``target``, so that no work is done in vain."""
    folder = target.absolute().parent
    if not folder.is_dir():
        raise ServingError(f"The folder of {target} does not exist; create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ServingError(f"The folder of {target} is not writable for you; give another one.")


def put_in_place(path: Path, target: Path, aside: Path) -> None:
    """Renames ``path`` onto ``target``, in one step where the system can exchange names.

    Where a folder is replaced, the older output is at ``path`` or at ``aside`` afterwards, for the caller to remove.
    """
    if not target.exists() or not (target.is_dir() or path.is_dir()):
        path.replace(target)
    elif not exchange(path, target):
        target.replace(aside)
        path.replace(target)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target`` (nothing there yet); renamed onto it unless the body raises.

    The body may make a file or a folder of it. An older output is replaced, and is back if that fails.
    """
    check_parent(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    replaced = target.with_name(f".{target.name}.{os.getpid()}.replaced")
    try:
        yield partial
        put_in_place(partial, target, replaced)
    finally:
        if replaced.exists() and not target.exists():
            replaced.replace(target)
        remove(partial)
        remove(replaced)
