"""AnnData in a Zarr folder (.zarr), Zarr format 2 or 3."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import zarr
from zarr.storage import FsspecStore

from ..urls import filesystem, is_url
from .anndata_group import AnnDataGroupSource


class ZarrSource(AnnDataGroupSource):
    """An AnnData .zarr folder, read in row blocks without loading it."""

    format = "zarr"
    kind = "an AnnData .zarr folder"

    def _open(self, path: str) -> AbstractContextManager[zarr.Group]:
        return nullcontext(zarr.open_group(_store(path), mode="r"))


def _store(path: str) -> str | FsspecStore:
    if not is_url(path):
        return path
    filesystem(path)  # says what is missing, and makes object stores known to fsspec
    return FsspecStore.from_url(path, read_only=True)
