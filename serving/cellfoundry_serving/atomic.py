"""Outputs appear whole or not at all: work goes to a temporary name beside the target, then is renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellfoundry_serving.errors import ServingError


def check_parent(target: Path) -> None:
    """Raises ServingError where ``target``'s folder does not exist, so that no work is done in vain."""
    if not target.absolute().parent.is_dir():
        raise ServingError(f"The folder of {target} does not exist; create it first.")


def remove(path: Path) -> None:
    """Deletes a file or a folder; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target`` (nothing there yet); renamed onto it unless the body raises.

    The body may make a file or a folder of it. An older output is replaced. A folder cannot be renamed onto
    a folder, so an older folder first steps aside under a temporary name.
    """
    check_parent(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    replaced = target.with_name(f".{target.name}.{os.getpid()}.replaced")
    try:
        yield partial
        if target.is_dir():
            target.replace(replaced)
        partial.replace(target)
    finally:
        remove(partial)
        remove(replaced)
