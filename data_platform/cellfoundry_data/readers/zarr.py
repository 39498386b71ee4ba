"""AnnData in a Zarr folder (.zarr), Zarr format 2 or 3."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import zarr

from .anndata_group import AnnDataGroupSource


class ZarrSource(AnnDataGroupSource):
    """An AnnData .zarr folder, read in row blocks without loading it."""

    kind = "an AnnData .zarr folder"

    def _open(self, path: str) -> AbstractContextManager[zarr.Group]:
        return nullcontext(zarr.open_group(path, mode="r"))
