"""A dense NumPy array without names (.npy), whose columns are a vocabulary's genes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..errors import DataError
from .base import CountsSource, reading
from .location import local_file
from .matrix import RowReader, dense_rows


class NpySource(CountsSource):
    """A .npy array, cells x vocabulary genes, memory-mapped; one behind a URL is copied to a temporary file."""

    format = "npy"
    kind = "a .npy array of cells x genes"

    def __init__(self, path: str) -> None:
        with reading(path, self.kind), local_file(path) as file:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray) or array.ndim != 2:
                raise DataError(f"{path}: must hold one array of two dimensions, cells x genes.")
            n_cells, n_columns = array.shape
        super().__init__(path, n_cells=n_cells, n_columns=n_columns)

    @contextmanager
    def _rows(self, start: int, stop: int) -> Iterator[RowReader]:
        with local_file(self.path) as file:
            yield dense_rows(np.load(file, mmap_mode="r", allow_pickle=False))
