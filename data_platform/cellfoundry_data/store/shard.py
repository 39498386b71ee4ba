"""Reading one shard: files mapped into memory, every byte checked the first time it is used.

The layout is plain Zarr v3 (zarr-python reads it too, and a test does); reading the shard index and the
chunks directly avoids zarr-python's cost per chunk, an order of magnitude at 128 random chunks. A chunk
carries its CRC-32C, so only what is read is checked; the small arrays are checked whole against the
manifest's SHA-256.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from cellfoundry_data.store import encoding
from cellfoundry_data.store.format import (
    COUNT_ESCAPE,
    GENE_ESCAPE,
    ROW,
    SHARDS,
    FileEntry,
    damaged,
    file_entries,
)

CRC_BYTES = 4
BIG_ARRAYS = ("gene_delta", "count")


class Shard:
    """One shard of an open store; DataError names it where its bytes are not those that were written.

    Attributes:
        name: the shard's folder below ``shards/``.
        cells: rows in the shard.
        chunks: chunks in the shard.
        row_nnz: uint32, (cells,).
        cell_key: uint64, (cells,); see ``cell_keys``.
        first_rows: int64, (chunks + 1,); first row of each chunk, then the number of rows.
    """

    def __init__(self, store: Path, entry: dict[str, Any], n_genes: int) -> None:
        self.name: str = entry["name"]
        self.cells: int = entry["cells"]
        self.chunks: int = entry["chunks"]
        self._chunk_nnz: int = entry["chunk_nnz"]
        self._store, self._n_genes = store, n_genes
        self._files = {file.path: file for file in file_entries(entry["files"])}
        self._zstd = Zstd()

        self._check_small_files()
        self.row_nnz = self._small_array("row_nnz", np.dtype("<u4"), self.cells)
        self.cell_key = self._small_array("cell_key", np.dtype("<u8"), self.cells)
        starts = self._small_array("chunk_start", np.dtype("<i8"), (self.chunks + 1) * 3).reshape(-1, 3)
        self._chunk_start = starts
        self._gene_escapes = self._small_array("gene_delta_escape", np.dtype("<u4"), starts[-1, GENE_ESCAPE])
        self._count_escapes = self._small_array("count_escape", np.dtype("<u4"), starts[-1, COUNT_ESCAPE])
        self.first_rows = np.ascontiguousarray(starts[:, ROW])
        self._check_layout()
        self._bytes = {name: self._map(name) for name in BIG_ARRAYS}
        self._index = {name: self._shard_index(name) for name in BIG_ARRAYS}

    def decode_chunk(
        self,
        chunk: int,
        destination: npt.NDArray[np.int64],
        gene_ids: npt.NDArray[np.int32],
        counts: npt.NDArray[np.float32],
    ) -> None:
        """Decode a chunk's rows into ``gene_ids`` and ``counts``, row ``i`` from ``destination[i]`` on
        (negative: left out).
        """
        first, last = self.first_rows[chunk : chunk + 2]
        before, after = self._chunk_start[chunk], self._chunk_start[chunk + 1]
        answer = encoding.decode_rows(
            self._chunk_bytes("gene_delta", chunk),
            self._chunk_bytes("count", chunk),
            self._gene_escapes[before[GENE_ESCAPE] : after[GENE_ESCAPE]],
            self._count_escapes[before[COUNT_ESCAPE] : after[COUNT_ESCAPE]],
            self.row_nnz[first:last],
            destination,
            self._n_genes,
            gene_ids,
            counts,
        )
        if answer != encoding.DECODED:
            why = {
                encoding.TOO_FEW_ESCAPES: "fewer escaped values than its bytes ask for",
                encoding.GENE_OUT_OF_RANGE: "a gene beyond the vocabulary",
            }[answer]
            raise self._damaged(f"chunk {chunk} has {why}")

    def _chunk_bytes(self, name: str, chunk: int) -> npt.NDArray[np.uint8]:
        """One decompressed chunk of a big array, (chunk_nnz,), after its checksum held."""
        offset, length = (int(number) for number in self._index[name][chunk])
        content = self._bytes[name]
        if offset + length > len(content) or length <= CRC_BYTES:
            raise self._damaged(f"the shard index of {name} points outside its file")
        stored = content[offset : offset + length]
        return self._decompress(name, stored, self._chunk_nnz)

    def _decompress(self, name: str, stored: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
        """Check and drop the CRC-32C at the end, then undo zstd; ``size`` bytes must come out."""
        packed = stored[:-CRC_BYTES]
        if google_crc32c.value(packed.tobytes()) != int.from_bytes(stored[-CRC_BYTES:].tobytes(), "little"):
            raise self._damaged(f"the checksum of a chunk of {name} differs")
        out = np.empty(size, np.uint8)
        try:
            self._zstd.decode(packed, out)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(f"a chunk of {name} does not decompress to {size:,} bytes") from error
        return out

    def _small_array(self, name: str, dtype: np.dtype[Any], size: int) -> npt.NDArray[Any]:
        """An array that lies in one chunk, flat."""
        if size == 0:
            return np.empty(0, dtype)
        stored = np.frombuffer(self._entry(name).read_checked(self._store, self._owner), np.uint8)
        return self._decompress(name, stored, size * dtype.itemsize).view(dtype)

    def _shard_index(self, name: str) -> npt.NDArray[np.uint64]:
        """Offset and length of every chunk of a big array, (chunks, 2): Zarr's sharding codec keeps it at the
        file's end.
        """
        size = self.chunks * 16 + CRC_BYTES
        content = self._bytes[name]
        if len(content) < size:
            raise self._damaged(f"{name} is too short for its shard index")
        tail = content[-size:]
        if google_crc32c.value(tail[:-CRC_BYTES].tobytes()) != int.from_bytes(
            tail[-CRC_BYTES:].tobytes(), "little"
        ):
            raise self._damaged(f"the checksum of the shard index of {name} differs")
        return tail[:-CRC_BYTES].copy().view("<u8").reshape(-1, 2)

    def _map(self, name: str) -> npt.NDArray[np.uint8]:
        entry = self._entry(name)
        entry.check_size(self._store, self._owner)
        return np.asarray(np.memmap(self._store / entry.path, np.uint8, "r"))

    def _entry(self, name: str) -> FileEntry:
        """The one data file of an array: ``c/0`` or, in two dimensions, ``c/0/0``."""
        folder = f"{SHARDS}/{self.name}/{name}/c/"
        for path, entry in self._files.items():
            if path.startswith(folder):
                return entry
        raise self._damaged(f"the manifest lists no file of {name}")

    def _check_small_files(self) -> None:
        """Zarr's metadata is not needed here, yet a reader of it must be able to trust it."""
        for path, entry in self._files.items():
            if path.endswith("zarr.json"):
                entry.read_checked(self._store, self._owner)

    def _check_layout(self) -> None:
        """Rows, chunks and entries agree, so that decoding stays inside its arrays."""
        starts = self._chunk_start
        if starts[0].any() or (np.diff(starts, axis=0) < 0).any() or starts[-1, ROW] != self.cells:
            raise self._damaged("chunk_start does not ascend from 0 to the number of cells")
        entries = np.concatenate([[0], np.cumsum(self.row_nnz, dtype=np.int64)])[self.first_rows]
        if (np.diff(entries) > self._chunk_nnz).any():
            raise self._damaged("a chunk has more entries than fit")

    @property
    def _owner(self) -> str:
        return f"shard {self.name}"

    def _damaged(self, what: str) -> Exception:
        return damaged(self._store, self._owner, what)
