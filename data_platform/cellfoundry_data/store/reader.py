"""Opening a store and reading cells from it by row or by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.store import manifest as manifest_file
from cellfoundry_data.store.cache import CACHE_BYTES, RangeCache
from cellfoundry_data.store.files import ByteRange, LocalFiles, StoreFiles
from cellfoundry_data.store.format import (
    MANIFEST,
    FileEntry,
    Values,
    damaged,
    file_entries,
    is_index_file,
    obs_file,
)
from cellfoundry_data.store.index import Index
from cellfoundry_data.store.recent import Recent
from cellfoundry_data.store.remote import RemoteFiles
from cellfoundry_data.store.shard import Shard, decoded_arrays
from cellfoundry_data.urls import is_url
from cellfoundry_data.vocabulary import Vocabulary

MAX_OPEN_SHARDS = 4096
"""About 8 KB each: the shards of 65 M cells."""

SIZES_ON_OPEN = 65_536
"""Files whose sizes are looked at on opening, those of 75 M cells: a remote file system takes its time for each."""


def open_store(path: str | Path, *, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> Store:
    """Open the store in a folder, or behind a URL of any protocol that fsspec knows.

    Of a local store with up to ``SIZES_ON_OPEN`` files the size of each is checked now; otherwise, as all that is
    read, a file is checked when it is used.

    Args:
        path: folder or URL (``s3://bucket/store``).
        cache: folder in which what is fetched from a URL is kept; None keeps nothing.
        cache_bytes: about what the cache may take of the disk, the oldest goes first; the default is 64 GiB.

    Raises:
        DataError: no store there, another format version, files missing, cut short or altered (which shard
            is said), or a URL that cannot be reached.
    """
    frame = read_frame(path, cache, cache_bytes)
    if isinstance(frame.files, LocalFiles):
        frame.check_sizes()
    return Store(frame, cache, cache_bytes)


@dataclass(frozen=True)
class Frame:
    """What surrounds the shards of a store.

    Attributes:
        path: the store's folder or URL.
        files: access to its files.
        manifest: manifest.json as it stands.
        entries: the files outside the shards.
        index: the shards.
    """

    path: Path | str
    files: StoreFiles
    manifest: dict[str, Any]
    entries: tuple[FileEntry, ...]
    index: Index

    def read(self, path: str, owner: str = "the frame") -> bytes:
        """A file of the frame, after its checksum held."""
        for entry in self.entries:
            if entry.path == path:
                return read_checked(self.files, entry, self.path, owner).tobytes()
        raise damaged(self.path, owner, f"the manifest lists no file {path}")

    def check_sizes(self) -> None:
        """Raise DataError where a file is missing or has another size than was written; see ``open_store``."""
        for entry in self.entries:
            entry.check_size(self.files.size(entry.path), self.path, "the frame")
        if self.index.n_files > SIZES_ON_OPEN:
            return
        for shard in range(len(self.index.names)):
            found = self.index.entry(shard)
            for entry in found.files:
                entry.check_size(self.files.size(entry.path), self.path, found.owner)


def read_frame(path: str | Path, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> Frame:
    """Manifest and index of the store at ``path``; DataError where they are not those of a store."""
    place = path if isinstance(path, str) and is_url(path) else Path(path)
    try:
        files: StoreFiles = RemoteFiles(place) if isinstance(place, str) else LocalFiles(place)
        content = files.read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        content = None
    if content is None:
        raise DataError(
            f"{place} is not a CellFoundry store: it has no {MANIFEST}; "
            "make one with `cellfoundry data ingest`."
        )
    manifest = manifest_file.parse(content, place)
    if cache is not None and isinstance(files, RemoteFiles):
        files.cache = RangeCache(Path(cache), manifest["sha256"], cache_bytes)
    entries = tuple(file_entries(manifest["files"]))
    parts = [read_checked(files, entry, place, "the index") for entry in entries if is_index_file(entry.path)]
    return Frame(place, files, manifest, entries, Index(parts, manifest, place))


def read_checked(files: StoreFiles, entry: FileEntry, store: object, owner: str) -> npt.NDArray[np.uint8]:
    """The bytes of a file of a store; DataError, naming ``owner``, where they are not those that were written."""
    if isinstance(files, LocalFiles):  # which takes memory for what is asked for, not for what is there
        entry.check_size(files.size(entry.path), store, owner)
    whole = ByteRange(entry.path, 0, entry.size)
    content = next(iter(files.ranges([whole])))
    try:
        entry.check_content(content.data, store, owner)
    except DataError:
        content = files.reread(whole)
        if not len(content) and entry.size:
            entry.check_size(files.size(entry.path), store, owner)
        entry.check_content(content.data, store, owner)
    return content


class Store:
    """An open store; its shards are opened, and what is read is checked, on use. Pickles as its path.

    Attributes:
        path: the store's folder or URL.
        manifest: manifest.json as it stands.
        first_rows: int64, (shards + 1,); first row of each shard, then the number of cells.
        chunk_nnz: uint32, (chunks,); entries of each chunk, in the store's order.
        chunk_first_row: int32 or, from 2^31 cells on, int64, (chunks + 1,); first row of each chunk, then the
            number of cells.
    """

    def __init__(self, frame: Frame, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        self._frame, self._cache, self._cache_bytes = frame, cache, cache_bytes
        self.path, self.manifest = frame.path, frame.manifest
        index = frame.index
        self.first_rows = index.first_rows
        self.chunk_nnz, self.chunk_first_row = index.chunk_nnz, index.chunk_first_row
        self._arrays = decoded_arrays(self.values)
        self._shards: Recent[int, Shard] = Recent(MAX_OPEN_SHARDS)
        self._vocabulary: Vocabulary | None = None
        self._obs: pa.Table | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._cache, self._cache_bytes)

    @property
    def n_cells(self) -> int:
        """Cells in the store."""
        return int(self.manifest["cells"])

    @property
    def n_chunks(self) -> int:
        """Chunks in the store."""
        return len(self.chunk_nnz)

    @property
    def n_genes(self) -> int:
        """Genes of the vocabulary, after it was compared with the manifest."""
        return len(self.vocabulary)

    @property
    def values(self) -> Values:
        """What the entries measure: "counts" or "float32"."""
        return self.manifest["values"]

    @property
    def vocabulary(self) -> Vocabulary:
        """The genes that gene ids count."""
        if self._vocabulary is None:
            content = self._frame.read(self.manifest["vocabulary"]["file"], "the vocabulary")
            lines = content.decode(errors="replace").removesuffix("\n").split("\n")[1:]
            vocabulary = Vocabulary(tuple(line.rpartition("\t")[0] for line in lines))
            if len(vocabulary) != self.manifest["genes"]:
                raise damaged(self.path, "the vocabulary", "it has another number of genes than the manifest")
            if vocabulary.hash != self.manifest["vocabulary"]["hash"]:
                raise damaged(self.path, "the vocabulary", "its hash is not the manifest's")
            self._vocabulary = vocabulary
        return self._vocabulary

    @property
    def obs(self) -> pa.Table:
        """Columns that describe the cells, (cells,), in row order; text as dictionary columns."""
        if self._obs is None:
            shards = range(len(self.first_rows) - 1)
            self._obs = pa.concat_tables(self.obs_of(shard) for shard in shards).unify_dictionaries()
        return self._obs

    def obs_of(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The part of ``obs``, or of some columns of it, that belongs to the shard number ``shard``."""
        found = self._frame.index.entry(shard)
        entry = found.file(obs_file(found.name), self.path)
        content = read_checked(self._frame.files, entry, self.path, found.owner)
        return pq.read_table(
            pa.BufferReader(pa.py_buffer(content)), columns=None if columns is None else list(columns)
        )

    def obs_frame(self) -> pd.DataFrame:
        """``obs`` as pandas, (cells,)."""
        return obs_as_frame(self.obs)

    def cell_keys(self, shard: int) -> npt.NDArray[np.uint64]:
        """Keys of a shard's cells, uint64, (cells of the shard,); see ``cell_keys``."""
        return self.chunk_cell_keys(np.arange(*self._frame.index.first_chunks[shard : shard + 2]))

    def chunk_cells(self, chunks: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Cells of each of ``chunks`` (numbers in the store's order), int64, (chunks,)."""
        chunks = np.asarray(chunks, np.int64)
        return (self.chunk_first_row[chunks + 1] - self.chunk_first_row[chunks]).astype(np.int64)

    def chunks_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The chunk that each of ``rows`` lies in, int64, (rows,)."""
        # In its own type: a haystack of another type than the needles would be copied, 130 MB at a billion cells.
        rows = rows.astype(self.chunk_first_row.dtype)
        return np.searchsorted(self.chunk_first_row, rows, side="right") - 1

    def chunk_row_nnz(self, chunks: npt.ArrayLike) -> npt.NDArray[np.uint32]:
        """Entries of every row of ``chunks`` (numbers in the store's order), one chunk after another, uint32."""
        return self._rows_of("row_nnz", np.asarray(chunks, np.int64), np.uint32)

    def chunk_cell_keys(self, chunks: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """Key of every row of ``chunks``, one chunk after another, uint64; see ``cell_keys``."""
        return self._rows_of("cell_key", np.asarray(chunks, np.int64), np.uint64)

    def decode_chunks(
        self,
        chunks: npt.ArrayLike,
        row_nnz: npt.NDArray[np.uint32],
        destination: npt.NDArray[np.int64],
        gene_ids: npt.NDArray[np.int32],
        counts: npt.NDArray[np.float32],
    ) -> None:
        """Decode rows straight into their places.

        Args:
            chunks: numbers in the store's order, (chunks,).
            row_nnz: their ``chunk_row_nnz``, (rows of these chunks,), one chunk after another.
            destination: (rows of these chunks,): where in the outputs a row's entries begin, ``row_nnz`` of
                them; negative leaves the row out. A chunk without wanted rows is not read.
            gene_ids, counts: outputs.

        Raises:
            DataError: a shard whose bytes are not those that were written.
        """
        chunks = np.asarray(chunks, np.int64)
        bounds = np.concatenate([[0], np.cumsum(self.chunk_cells(chunks))])
        if not len(row_nnz) == len(destination) == bounds[-1]:
            raise ValueError(
                f"{len(row_nnz)} lengths and {len(destination)} destinations were given for {bounds[-1]} rows"
            )
        if len(chunks) == 0:
            return
        wanted = np.flatnonzero(np.maximum.reduceat(destination, bounds[:-1]) >= 0)
        rows = [slice(*pair) for pair in np.stack([bounds[wanted], bounds[wanted + 1]], axis=1).tolist()]
        jobs = list(self._located(chunks[wanted]))
        ranges = [shard.range(array, chunk) for shard, chunk in jobs for array in self._arrays]
        pieces = self._frame.files.ranges(ranges)
        for (shard, chunk), own_rows in zip(jobs, rows, strict=True):
            own = [next(pieces) for _ in self._arrays]
            shard.decode(chunk, own, row_nnz[own_rows], destination[own_rows], gene_ids, counts)

    def read_cells(self, rows: npt.ArrayLike) -> CellBatch:
        """The cells at ``rows`` (integers, (cells,)), in that order, repeats allowed; row ids are store rows.

        Raises:
            DataError: rows that are no integers (a boolean mask too), a row outside the store, or a shard whose
                bytes are not those that were written.
        """
        given = np.asarray(rows).reshape(-1)
        if len(given) and given.dtype.kind not in "iu":
            raise DataError(
                f"rows of the store {self.path} are asked for by integers, not {given.dtype}: give the numbers "
                "of the rows (of a mask: numpy.flatnonzero)."
            )
        wanted = given.astype(np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self.n_cells):
            raise DataError(
                f"rows of the store {self.path} run from 0 to {self.n_cells - 1}: one outside was asked for."
            )
        unique, where = np.unique(wanted, return_inverse=True)
        distinct = self._read_ascending(unique)
        return distinct if np.array_equal(unique, wanted) else distinct.select(where)

    def _read_ascending(self, rows: npt.NDArray[np.int64]) -> CellBatch:
        """The cells at ``rows``, which ascend strictly; each chunk they touch is decoded once."""
        chunk_of = self.chunks_of(rows)
        chunks, which = np.unique(chunk_of, return_inverse=True)
        before = np.concatenate([[0], np.cumsum(self.chunk_cells(chunks))])
        places = rows - self.chunk_first_row[chunk_of] + before[which]
        row_nnz = self.chunk_row_nnz(chunks)
        indptr = np.concatenate([[0], np.cumsum(row_nnz[places], dtype=np.int64)]).astype(np.int64)
        destination = np.full(before[-1], -1, np.int64)
        destination[places] = indptr[:-1]
        gene_ids, counts = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        self.decode_chunks(chunks, row_nnz, destination, gene_ids, counts)
        return CellBatch(indptr, gene_ids, counts, rows)

    def _rows_of(
        self, array: str, chunks: npt.NDArray[np.int64], dtype: type[np.generic]
    ) -> npt.NDArray[Any]:
        jobs = list(self._located(chunks))
        pieces = self._frame.files.ranges([shard.range(array, chunk) for shard, chunk in jobs])
        rows = [shard.rows(array, chunk, piece) for (shard, chunk), piece in zip(jobs, pieces, strict=True)]
        return np.concatenate([np.empty(0, dtype), *rows])

    def _located(self, chunks: npt.NDArray[np.int64]) -> Iterator[tuple[Shard, int]]:
        """The shard that each of ``chunks`` lies in, and its number there; shards used last stay open."""
        first_chunks = self._frame.index.first_chunks
        shards = np.searchsorted(first_chunks, chunks, side="right") - 1
        for shard, chunk in zip(shards.tolist(), (chunks - first_chunks[shards]).tolist(), strict=True):
            yield self._shards.get(shard, self._open_shard), chunk

    def _open_shard(self, number: int) -> Shard:
        return Shard(
            self._frame.files,
            self._frame.index.entry(number),
            n_genes=self.n_genes,
            values=self.values,
            profile=self.manifest["profile"],
            store=self.path,
        )


def obs_as_frame(obs: pa.Table) -> pd.DataFrame:
    """A table of cells as pandas, (cells,); a boolean column with gaps is nullable, which AnnData can write."""
    frame = obs.to_pandas()
    for field in obs.schema:
        if pa.types.is_boolean(field.type) and obs[field.name].null_count:
            frame[field.name] = frame[field.name].astype("boolean")
    return frame


def _reopen(path: Path | str, cache: Path | None, cache_bytes: int) -> Store:
    return open_store(path, cache=cache, cache_bytes=cache_bytes)
