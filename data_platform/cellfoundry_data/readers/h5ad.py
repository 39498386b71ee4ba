"""AnnData in one HDF5 file (.h5ad)."""

from __future__ import annotations

from contextlib import AbstractContextManager

import h5py

from .anndata_group import AnnDataGroupSource
from .hdf5 import open_hdf5


class H5adSource(AnnDataGroupSource):
    """An .h5ad file, read in row blocks without loading it."""

    format = "h5ad"
    kind = "an AnnData .h5ad file"

    def _open(self, path: str) -> AbstractContextManager[h5py.File]:
        return open_hdf5(path)
