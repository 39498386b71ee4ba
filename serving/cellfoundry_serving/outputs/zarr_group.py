"""``.zarr``: a group with ``embedding`` (chunked by rows), ``cells`` or ``groups`` and, for a gene axis, ``genes``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr

from cellfoundry_data.store.replace import sync, sync_tree
from cellfoundry_serving.outputs.base import PROVENANCE_KEY, OutputSpec, RowsOnDisk

CHUNK_BYTES = 16 * 2**20


def chunk_rows(row_shape: Sequence[int]) -> int:
    """Whole rows of about 16 MiB, so a reader of one cell touches one chunk."""
    return max(1, CHUNK_BYTES // (4 * math.prod(row_shape)))


def create_zarr(path: Path, shape: tuple[int, ...], rows_of_chunk: int) -> None:
    """A group whose ``embedding`` has no values yet."""
    group = zarr.open_group(path, mode="w")
    chunks = (max(1, min(shape[0], rows_of_chunk)), *shape[1:])
    group.create_array("embedding", shape=shape, chunks=chunks, dtype="float32")


class ZarrRows(RowsOnDisk):
    """Writes whole chunks; rows of an unfinished one wait for the next block. Parts begin where a chunk begins."""

    def __init__(self, path: Path) -> None:
        group = zarr.open_group(path, mode="r+")
        array = group["embedding"]
        assert isinstance(array, zarr.Array)
        self._array = array
        self._folder = path / "embedding" / "c"
        self._chunk_rows = array.chunks[0]
        self._waiting: list[npt.NDArray[np.float32]] = []
        self._next = 0

    def write(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Writes every chunk that the block completes."""
        if first % self._chunk_rows == 0:
            self._waiting, self._next = [], first
        self._waiting.append(block)
        rows = first + len(block) - self._next
        if rows >= self._chunk_rows:
            self._flush(rows - rows % self._chunk_rows)

    def _flush(self, ready: int) -> None:
        rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        self._array[self._next : self._next + ready] = rows[:ready]
        self._next += ready
        self._waiting = [rows[ready:]]

    def commit(self, start: int, stop: int) -> None:
        """Writes the last chunk of the part and has its files on the disk."""
        if self._next < stop:
            self._flush(stop - self._next)
        self._waiting = []
        for chunk in range(start // self._chunk_rows, -(-stop // self._chunk_rows)):
            folder = self._folder / str(chunk)
            if folder.is_dir():  # a chunk of zeros is not stored
                sync_tree(folder)
        if self._folder.is_dir():
            sync(self._folder)


def finish_zarr(path: Path, spec: OutputSpec) -> None:
    """Adds names and provenance; of means, the obs of the groups too."""
    for unfinished in path.rglob("*.partial"):  # zarr's name for a file that a kill found half written
        unfinished.unlink()
    group = zarr.open_group(path, mode="r+")
    _write_names(group, spec.rows, [str(name) for name in spec.obs.index])
    if spec.output != "cell":
        _write_names(group, "genes", spec.genes)
    if spec.rows == "groups":
        for name in spec.obs.columns:
            group.create_array(str(name), data=spec.obs[name].to_numpy(), overwrite=True)
    group.attrs.update({PROVENANCE_KEY: spec.provenance})
    sync_tree(path)


def _write_names(group: zarr.Group, name: str, values: Sequence[str]) -> None:
    group.create_array(name, data=np.array(values, dtype=np.dtypes.StringDType()), overwrite=True)
