"""One shard of an open store, every byte checked when it is used.

The layout is plain Zarr v3 (zarr-python reads it too, and a test does); reading the shard index and the
chunks directly avoids zarr-python's cost per chunk, an order of magnitude at 128 random chunks. A chunk
carries its CRC-32C, so only what is read is checked.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfoundry_data.store import codec, decoding
from cellfoundry_data.store.files import ByteRange, StoreFiles
from cellfoundry_data.store.format import (
    CRC_BYTES,
    Profile,
    Values,
    damaged,
    data_file,
)
from cellfoundry_data.store.index import ShardEntry

_WHY = {
    decoding.TOO_FEW_ESCAPES: "has fewer escaped values than its bytes ask for",
    decoding.GENE_OUT_OF_RANGE: "has a gene beyond the vocabulary",
    decoding.TOO_FEW_ENTRIES: "has fewer entries than its rows ask for",
}


def decoded_arrays(values: Values) -> tuple[str, ...]:
    """The arrays that decoding a chunk needs, in the order in which ``Shard.decode`` takes their pieces."""
    measured = ("count", "count_escape") if values == "counts" else ("value",)
    return ("gene_delta", "gene_delta_escape", *measured)


class Shard:
    """One shard of an open store; DataError names it where its bytes are not those that were written.

    Args:
        files: of the store.
        entry: the shard's row in the index.
        n_genes: genes of the vocabulary.
        values, profile: of the store, from its manifest.
        store: the store's place, for errors.
    """

    def __init__(
        self,
        files: StoreFiles,
        entry: ShardEntry,
        *,
        n_genes: int,
        values: Values,
        profile: Profile,
        store: object,
    ) -> None:
        self._files, self._store, self._owner = files, store, entry.owner
        self._chunks = entry.chunks
        self._chunk_cells, self._chunk_nnz = entry.chunk_cells, entry.chunk_nnz_used
        self._n_genes, self._profile = n_genes, profile
        self._arrays = decoded_arrays(values)
        rows = int(entry.chunk_cells.max())
        self._widths = {
            "row_nnz": 4 * rows,
            "cell_key": 8 * rows,
            "gene_delta": entry.chunk_nnz,
            "gene_delta_escape": 4 * entry.gene_delta_escapes,
            "count": entry.chunk_nnz,
            "count_escape": 4 * entry.count_escapes,
            "value": 4 * entry.chunk_nnz,
        }
        self._paths = {name: data_file(entry.name, name) for name in (*self._arrays, "row_nnz", "cell_key")}
        self._sizes = {name: entry.file(path, store).size for name, path in self._paths.items()}
        self._bounds: dict[str, array[int]] = {}

    def range(self, name: str, chunk: int) -> ByteRange:
        """Where a chunk of an array lies."""
        bounds = self._bounds.get(name)
        if bounds is None:
            bounds = self._bounds[name] = self._bounds_of(name)
        return ByteRange(self._paths[name], bounds[chunk], bounds[chunk + 1])

    def rows(self, name: str, chunk: int, stored: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """A chunk of ``row_nnz`` (uint32) or ``cell_key`` (uint64) from its stored bytes, (cells,).

        What is allocated by ``row_nnz`` has the bounds of the index: it must add up to the chunk's entries there.
        """
        content = self._unpack(name, chunk, stored)
        rows = content.view("<u4" if name == "row_nnz" else "<u8")[: self._chunk_cells[chunk]]
        if name == "row_nnz" and rows.sum(dtype=np.int64) != self._chunk_nnz[chunk]:
            raise self._damaged(f"the rows of chunk {chunk} have not the entries that the index says")
        return rows

    def decode(
        self,
        chunk: int,
        pieces: Sequence[npt.NDArray[np.uint8]],
        row_nnz: npt.NDArray[np.uint32],
        destination: npt.NDArray[np.int64],
        gene_ids: npt.NDArray[np.int32],
        counts: npt.NDArray[np.float32],
    ) -> None:
        """Decode a chunk's rows into ``gene_ids`` and ``counts``, the ``row_nnz[i]`` entries of row ``i`` from
        ``destination[i]`` on (negative: left out). ``pieces`` are the stored bytes of ``decoded_arrays``.
        """
        gene_delta = self._unpack("gene_delta", chunk, pieces[0])
        escapes = self._unpack("gene_delta_escape", chunk, pieces[1]).view("<u4")
        answer = decoding.decode_genes(gene_delta, escapes, row_nnz, destination, self._n_genes, gene_ids)
        if answer == decoding.DECODED:
            measured = self._unpack(self._arrays[2], chunk, pieces[2])
            if len(self._arrays) == 3:
                answer = decoding.place_values(measured, row_nnz, destination, counts.view(np.uint8))
            else:
                escapes = self._unpack("count_escape", chunk, pieces[3]).view("<u4")
                answer = decoding.decode_counts(measured, escapes, row_nnz, destination, counts)
        if answer == decoding.OUTSIDE:
            raise ValueError(
                "decoded rows need more room than the given arrays have behind their destination"
            )
        if answer != decoding.DECODED:
            raise self._damaged(f"chunk {chunk} {_WHY[answer]}")

    def _unpack(self, name: str, chunk: int, stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The bytes of a chunk; a copy that is damaged is fetched once more from its origin."""
        try:
            return codec.unpack(stored, self._widths[name], self._profile)
        except codec.PieceError:
            stored = self._files.reread(self.range(name, chunk))
        try:
            return codec.unpack(stored, self._widths[name], self._profile)
        except codec.PieceError as error:
            raise self._damaged(f"{error} in {self._paths[name]}") from error

    def _bounds_of(self, name: str) -> array[int]:
        """Where the chunks of an array begin and the last one ends: Zarr's sharding codec keeps offset and length
        of each, 16 bytes and a checksum over all, at the file's end.
        """
        path, size = self._paths[name], self._sizes[name]
        where = ByteRange(path, size - self._chunks * 16 - CRC_BYTES, size)
        if where.start < 0:
            raise self._damaged(f"{path} is too short for its shard index")
        stored = next(iter(self._files.ranges([where])))
        if len(stored) != where.stop - where.start or not codec.is_sealed(stored):
            stored = self._files.reread(where)
        if len(stored) != where.stop - where.start:
            raise self._damaged(f"{path} is missing or shorter than it was written")
        if not codec.is_sealed(stored):
            raise self._damaged(f"the checksum of the shard index of {name} differs")
        pairs = np.frombuffer(stored, "<i8", 2 * self._chunks).reshape(-1, 2)
        bounds = np.empty(self._chunks + 1, np.int64)
        bounds[:-1], bounds[-1] = pairs[:, 0], where.start
        if bounds[0] != 0 or (pairs[:, 1] < 1).any() or (np.diff(bounds) != pairs[:, 1]).any():
            raise self._damaged(f"the shard index of {name} does not cover its file")
        return (
            array("I", bounds.astype(np.uint32).tobytes()) if size < 2**32 else array("q", bounds.tobytes())
        )

    def _damaged(self, what: str) -> Exception:
        return damaged(self._store, self._owner, what)
