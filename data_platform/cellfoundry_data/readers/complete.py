"""Arrays on disk whose missing chunks are errors.

HDF5 and Zarr read a chunk that is not stored as its fill value, so a lost file would turn counts into zeros without a
word. Whether a chunk is stored is asked only where its first element reads as zero or empty, which costs nothing:
sparse matrices store no zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.sync import sync

from .lzf import LzfArray, is_lzf


class CompleteArray:
    """A view of an ``h5py.Dataset`` or ``zarr.Array`` that raises ValueError on reading a chunk that is not stored.

    In a matrix of two dimensions a Zarr writer leaves out a chunk of zeros, by right. There it is an error only
    where all chunks of a range of rows are missing: no counts at all in hundreds of consecutive cells.
    """

    def __init__(self, array: h5py.Dataset | zarr.Array) -> None:
        self._array: Any = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype = array.dtype
        self.chunks: tuple[int, ...] | None = getattr(array, "shards", None) or array.chunks
        self._lzf = LzfArray(array) if is_lzf(array) else None

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Elements or rows [rows.start, rows.stop)."""
        start, stop, _ = rows.indices(self.shape[0])
        values = self._lzf.read(start, max(start, stop)) if self._lzf else np.asarray(self._array[rows])
        height = self.chunks[0] if self.chunks else max(1, self.shape[0])
        for chunk in range(start // height, -(-stop // height) if stop > start else 0):
            first = values[max(chunk * height - start, 0)]
            if (len(self.shape) == 1 and first in (0, "", b"")) or (len(self.shape) == 2 and not first.any()):
                self._check_stored(chunk)
        return values

    @property
    def _is_hdf5(self) -> bool:
        return isinstance(self._array, h5py.Dataset)

    def _check_stored(self, chunk: int) -> None:
        if not any(self._stored(coordinates) for coordinates in self._row_of_chunks(chunk)):
            remedy = (
                "remove stored zeros with eliminate_zeros()" if len(self.shape) == 1 else "make it sparse"
            )
            raise ValueError(
                f"chunk {chunk} of {self._array.name} is missing; if it held nothing but zeros, {remedy} and save again"
            )

    def _row_of_chunks(self, chunk: int) -> Iterator[tuple[int, ...]]:
        if len(self.shape) == 1 or not self.chunks:
            yield (chunk,) + (0,) * (len(self.shape) - 1)
            return
        for across in range(-(-self.shape[1] // self.chunks[1])):
            yield chunk, across

    def _stored(self, coordinates: tuple[int, ...]) -> bool:
        if not self._is_hdf5:
            key = f"{self._array.path}/{self._array.metadata.encode_chunk_key(coordinates)}".lstrip("/")
            return bool(sync(self._array.store.exists(key)))
        if not self.chunks:
            return self._array.id.get_storage_size() > 0
        corner = tuple(at * width for at, width in zip(coordinates, self.chunks, strict=True))
        return self._array.id.get_chunk_info_by_coord(corner).size > 0
