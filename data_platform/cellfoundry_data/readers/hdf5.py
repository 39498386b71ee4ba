"""HDF5 files, of this machine or behind a URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import h5py

from ..urls import is_url
from .location import open_binary


@contextmanager
def open_hdf5(path: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; a URL is read by ranges."""
    if not is_url(path):
        with h5py.File(path, "r") as file:
            yield file
        return
    with open_binary(path) as remote, h5py.File(remote, "r") as file:
        yield file
