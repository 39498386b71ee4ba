"""NumPy files without names, whose columns are a vocabulary's genes: .npy (dense) and .npz (scipy.sparse)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.lib.npyio import NpzFile

from ..errors import DataError
from .base import CountsSource, reading, row_ranges, unnamed_cells
from .matrix import checked_csr, dense_rows


class NpySource(CountsSource):
    """A dense .npy array, cells x vocabulary genes, memory-mapped."""

    kind = "a .npy array of cells x genes"

    def __init__(self, path: str) -> None:
        with reading(path, self.kind):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray) or array.ndim != 2:
                raise DataError(f"{path}: must hold one array of two dimensions, cells x genes.")
        super().__init__(path, obs=unnamed_cells(array.shape[0]), n_columns=array.shape[1])

    def blocks(self, block_cells: int = 4096) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield (first row, float32 CSR) in row order."""
        with reading(self.path, self.kind):
            read = dense_rows(np.load(self.path, mmap_mode="r", allow_pickle=False))
            for start, stop in row_ranges(self.n_cells, block_cells):
                yield start, read(start, stop)


class NpzSource(CountsSource):
    """A scipy.sparse matrix saved with ``save_npz``; compressed as a whole, it is loaded as a whole."""

    kind = "a .npz file of scipy.sparse.save_npz"

    def __init__(self, path: str) -> None:
        with reading(path, self.kind), Path(path).open("rb") as file:
            # opened here, because numpy leaves the file open when its end is missing
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, NpzFile) or "shape" not in arrays or len(arrays["shape"]) != 2:
                raise DataError(f"{path}: is not {self.kind}; save the counts as a sparse matrix or as .npy.")
            n_cells, n_columns = (int(size) for size in arrays["shape"])
        super().__init__(path, obs=unnamed_cells(n_cells), n_columns=n_columns)

    def blocks(self, block_cells: int = 4096) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield (first row, float32 CSR) in row order."""
        with reading(self.path, self.kind), Path(self.path).open("rb") as file:
            stored = sp.load_npz(file)
            if stored.format == "csc":
                matrix = checked_csr(stored.data, stored.indices, stored.indptr, self.n_cells).T.tocsr()
            else:
                stored = stored if stored.format == "csr" else stored.tocoo().tocsr()
                matrix = checked_csr(stored.data, stored.indices, stored.indptr, self.n_columns)
        for start, stop in row_ranges(self.n_cells, block_cells):
            yield start, matrix[start:stop]
