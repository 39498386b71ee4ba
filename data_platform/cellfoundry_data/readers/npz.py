"""A sparse matrix without names (.npz of scipy.sparse), whose columns are a vocabulary's genes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .base import CountsSource, reading
from .checks import as_float32, as_integers
from .location import open_binary
from .matrix import PIECE_ENTRIES, RowReader, checked_csr, compressed_columns, row_offsets, stored_entries
from .unordered import Entries, rows_of_entries

MAX_CELLS_PER_ENTRY = 1000
"""A header with more is damaged: it would take hours to find that all its cells are empty."""


class NpzSource(CountsSource):
    """A matrix of ``scipy.sparse.save_npz`` in CSR, CSC or COO form; its members are read as streams.

    A CSC or COO matrix is sorted through a temporary file first.
    """

    format = "npz"
    kind = "a .npz file of scipy.sparse.save_npz"
    row_access = False

    def __init__(self, path: str) -> None:
        with reading(path, self.kind), open_binary(path) as file, zipfile.ZipFile(file) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist()}
            if not {"format", "shape", "data"} <= members:
                raise DataError(f"{path}: is not {self.kind}; save the counts as a sparse matrix or as .npy.")
            with _Member.open(archive, "format") as form, _Member.open(archive, "shape") as shape:
                self._form = _as_text(form.read(1)[0])
                sizes = as_integers(shape.read(3), "sizes")
            with _Member.open(archive, "data") as data:
                entries = data.shape[0]
        if self._form not in ("csr", "csc", "coo") or len(sizes) != 2 or sizes.min() < 0:
            raise DataError(
                f"{path}: must hold a csr, csc or coo matrix of two dimensions, not {self._form}."
            )
        n_cells, n_columns = (int(size) for size in sizes)
        if n_cells > MAX_CELLS_PER_ENTRY * (entries + 1000):
            raise DataError(
                f"{path}: says it has {n_cells:,} cells, but stores {entries:,} values; it is damaged."
            )
        super().__init__(path, n_cells=n_cells, n_columns=n_columns)

    @contextmanager
    def _rows(self, start: int, stop: int) -> Iterator[RowReader]:
        shape = self.n_cells, self.n_columns
        with ExitStack() as opened:
            file = opened.enter_context(open_binary(self.path))
            archive = opened.enter_context(zipfile.ZipFile(file))

            def member(name: str) -> _Member:
                return opened.enter_context(_Member.open(archive, name))

            data = member("data")
            if self._form == "coo":
                entries = _coordinates(member("row"), member("col"), data)
                yield opened.enter_context(rows_of_entries(entries, shape, start, stop))
                return
            indices = member("indices")
            offsets = row_offsets(member("indptr"), shape[self._form == "csc"], stored_entries(data, indices))
            if self._form == "csc":
                entries = compressed_columns(data, indices, offsets)
                yield opened.enter_context(rows_of_entries(entries, shape, start, stop))
                return

            def read(low: int, high: int) -> Any:
                first, last = int(offsets[low]), int(offsets[high])
                return checked_csr(
                    data[first:last], indices[first:last], offsets[low : high + 1] - first, shape[1]
                )

            yield read


class _Member:
    """A 1-D array of the archive, read front to back; slices must ascend."""

    def __init__(self, stream: Any, size: int) -> None:
        version = np.lib.format.read_magic(stream)
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, _, self.dtype = read_header[version[0]](stream)
        self.shape = shape or (1,)
        if self.dtype.hasobject or len(self.shape) != 1:
            raise ValueError("a member is no plain list of numbers")
        if stream.tell() + self.shape[0] * self.dtype.itemsize != size:
            raise ValueError("a member is not as long as its header says")
        self._stream = stream
        self._at = 0

    @staticmethod
    @contextmanager
    def open(archive: zipfile.ZipFile, name: str) -> Iterator[_Member]:
        """The member ``name``."""
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as stream:
            yield _Member(stream, info.file_size)

    def read(self, count: int) -> npt.NDArray[Any]:
        """The next ``count`` elements, or as many as there are."""
        count = min(count, self.shape[0] - self._at)
        content = self._stream.read(count * self.dtype.itemsize)
        if len(content) != count * self.dtype.itemsize:
            raise ValueError("a member ends before its last element")
        self._at += count
        return np.frombuffer(content, self.dtype)

    def __getitem__(self, elements: slice) -> npt.NDArray[Any]:
        start, stop, _ = elements.indices(self.shape[0])
        while self._at < start:
            self.read(min(PIECE_ENTRIES, start - self._at))
        return self.read(stop - start)


def _coordinates(rows: _Member, columns: _Member, values: _Member) -> Iterator[Entries]:
    if not rows.shape == columns.shape == values.shape:
        raise ValueError("rows, columns and values are not equally many")
    for low in range(0, values.shape[0], PIECE_ENTRIES):
        piece = slice(low, low + PIECE_ENTRIES)
        yield (
            as_integers(rows[piece], "row indices"),
            as_integers(columns[piece], "column indices"),
            as_float32(values[piece]),
        )


def _as_text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
