"""AnnData in one HDF5 file (.h5ad)."""

from __future__ import annotations

import h5py

from .anndata_group import AnnDataGroupSource


class H5adSource(AnnDataGroupSource):
    """An .h5ad file, read in row blocks without loading it."""

    kind = "an AnnData .h5ad file"

    def _open(self, path: str) -> h5py.File:
        return h5py.File(path, "r")
