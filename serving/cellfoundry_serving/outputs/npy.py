"""``.npy``: the bare array, float32, rows in the source's order; formats that are written in order start from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellfoundry_data.store.replace import sync
from cellfoundry_serving.outputs.base import RowsOnDisk

READ_BYTES = 16 * 2**20


def create_npy(path: Path, shape: tuple[int, ...]) -> None:
    """An array without values yet; it takes disk as it is filled."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        file.truncate(file.tell() + 4 * int(np.prod(shape, dtype=np.int64)))


def read_header(path: Path) -> tuple[int, tuple[int, ...]]:
    """Byte at which the values begin, and the shape."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_2_0(file)
        return file.tell(), shape


class NpyRows(RowsOnDisk):
    """Writes through the file, so that a large output never fills memory with mapped pages."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset, shape = read_header(path)
        self._row_bytes = 4 * int(np.prod(shape[1:], dtype=np.int64))

    def write(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Writes the block where it belongs."""
        with self._path.open("r+b") as file:
            file.seek(self._offset + first * self._row_bytes)
            file.write(np.ascontiguousarray(block, dtype="<f4").data)

    def commit(self, start: int, stop: int) -> None:
        """Has what was written on the disk."""
        sync(self._path)


def npy_blocks(path: Path, start: int, stop: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Rows [start, stop) of the array in blocks of about 16 MiB."""
    offset, shape = read_header(path)
    row_values = int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, READ_BYTES // (4 * row_values))
    with path.open("rb") as file:
        file.seek(offset + 4 * start * row_values)
        for first in range(start, stop, step):
            rows = min(step, stop - first)
            yield first, np.fromfile(file, "<f4", rows * row_values).reshape(rows, *shape[1:])
