"""index/*.parquet: what every shard holds and which files it has, checked before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cellfoundry_data.store.format import (
    INDEX_SCHEMA,
    MAX_CHUNK,
    SHARDS,
    FileEntry,
    damaged,
    is_shard_name,
    obs_file,
)

SHARDS_AT_ONCE = 1024
"""Rows of the index that are parsed at a time; with 4,096 opening a billion cells leaves 0.05 GB more behind."""

_WIDTHS = ("chunk_nnz", "gene_delta_escapes", "count_escapes")
_PER_SHARD = ("cells", "nnz", "chunks", "n_files", *_WIDTHS)
_SHA256_HEX = 64


@dataclass(frozen=True)
class ShardEntry:
    """One row of the index.

    Attributes:
        name: the shard's folder below ``shards/``.
        chunks: how many it has.
        chunk_nnz, gene_delta_escapes, count_escapes: widths of the arrays.
        chunk_cells: int32 or int64, (chunks,); cells of each chunk.
        chunk_nnz_used: uint32, (chunks,); entries of each chunk.
        files: its arrays and its obs.
    """

    name: str
    chunks: int
    chunk_nnz: int
    gene_delta_escapes: int
    count_escapes: int
    chunk_cells: npt.NDArray[np.signedinteger]
    chunk_nnz_used: npt.NDArray[np.uint32]
    files: tuple[FileEntry, ...]

    @property
    def owner(self) -> str:
        """The shard as errors call it."""
        return f"shard {self.name}"

    def file(self, path: str, store: object) -> FileEntry:
        """The entry of the file ``path``; DataError where there is none."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise damaged(store, self.owner, f"the index lists no file {path}")


class Index:
    """All shards of a store in order; 8 bytes a chunk (12 from 2^31 cells on) and 0.7 KB a shard are in memory.

    Attributes:
        names: the shards' names.
        first_rows, first_chunks: int64, (shards + 1,); rows and chunks before each shard, then the totals.
        chunk_first_row: int32 or, from 2^31 cells on, int64, (chunks + 1,); first row of each chunk, then the
            number of cells.
        chunk_nnz: uint32, (chunks,); entries of each chunk.

    Raises:
        DataError: numbers that contradict each other or exceed what a chunk may have.
    """

    def __init__(self, parts: list[npt.NDArray[np.uint8]], manifest: dict[str, Any], store: object) -> None:
        self._store = store
        self.names: list[str] = []
        self._layouts: list[tuple[str, ...]] = []
        self._known_layouts: dict[tuple[str, ...], tuple[str, ...]] = {}
        small = manifest["cells"] < 2**31  # compared with the index below
        self.chunk_first_row: npt.NDArray[np.signedinteger] = np.zeros(1, np.int32 if small else np.int64)
        self.chunk_nnz = np.empty(0, np.uint32)
        self._sizes, self._sha256 = np.empty(0, np.int64), np.empty((0, _SHA256_HEX // 2), np.uint8)
        shards: dict[str, npt.NDArray[np.int64]] = {name: np.empty(0, np.int64) for name in _PER_SHARD}
        for table in self._tables(parts):
            found = self._checked(table)
            first_rows = self.chunk_first_row[-1] + np.cumsum(found["chunk_cells"], dtype=np.int64)
            _extend(self.chunk_first_row, first_rows)
            _extend(self.chunk_nnz, found["chunk_nnz_used"])
            _extend(self._sizes, found["size"])
            _extend(self._sha256, found["sha256"])
            for name, values in shards.items():
                _extend(values, found[name])
            pa.default_memory_pool().release_unused()
        self._widths = {name: shards[name] for name in _WIDTHS}
        self.first_rows, self.first_chunks = _before(shards["cells"]), _before(shards["chunks"])
        self._first_files = _before(shards["n_files"])
        self._check_totals(shards["nnz"], manifest)

    @property
    def n_files(self) -> int:
        """Files of all shards."""
        return len(self._sizes)

    def entry(self, shard: int) -> ShardEntry:
        """The shard number ``shard``."""
        chunks = slice(*self.first_chunks[shard : shard + 2].tolist())
        files = slice(*self._first_files[shard : shard + 2].tolist())
        sizes, digests = self._sizes[files].tolist(), self._sha256[files]
        return ShardEntry(
            name=self.names[shard],
            chunks=chunks.stop - chunks.start,
            chunk_nnz=int(self._widths["chunk_nnz"][shard]),
            gene_delta_escapes=int(self._widths["gene_delta_escapes"][shard]),
            count_escapes=int(self._widths["count_escapes"][shard]),
            chunk_cells=np.diff(self.chunk_first_row[chunks.start : chunks.stop + 1]),
            chunk_nnz_used=self.chunk_nnz[chunks],
            files=tuple(
                FileEntry(self._path(shard, ending), size, digest.tobytes().hex())
                for ending, size, digest in zip(self._layouts[shard], sizes, digests, strict=True)
            ),
        )

    def _path(self, shard: int, ending: str) -> str:
        name = self.names[shard]
        return f"{SHARDS}/{name}/{ending}" if ending else obs_file(name)

    def _tables(self, parts: list[npt.NDArray[np.uint8]]) -> Iterator[pa.Table]:
        """The rows of all parts, some at a time."""
        try:
            for part in parts:
                file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(part)))
                for batch in file.iter_batches(SHARDS_AT_ONCE, use_threads=False):
                    yield pa.Table.from_batches([batch]).cast(INDEX_SCHEMA).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise self._damaged("it is no table of shards") from error

    def _checked(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Some rows as arrays, everything that a reader multiplies, allocates by or opens checked."""
        if any(column.null_count for column in table.columns):
            raise self._damaged("numbers are missing")
        shard = {name: table[name].to_numpy() for name in ("cells", "nnz", "chunks", *_WIDTHS)}
        for name in ("chunk_cells", "chunk_nnz_used"):
            if not np.array_equal(pc.list_value_length(table[name]).to_numpy(), shard["chunks"]):
                raise self._damaged(f"{name} has another number of chunks")
        chunk = {name: self._flat(table, name).to_numpy() for name in ("chunk_cells", "chunk_nnz_used")}
        shard_of = np.repeat(np.arange(len(table)), shard["chunks"])
        for name, whole in (("chunk_cells", "cells"), ("chunk_nnz_used", "nnz")):
            sums = np.bincount(shard_of, chunk[name], len(table)).astype(np.int64)
            if not np.array_equal(sums, shard[whole]):
                raise self._damaged(f"{name} does not add up to {whole}")
        widths = shard["chunk_nnz"]
        bounded = (widths >= 1).all() and (widths <= MAX_CHUNK).all()
        for name in ("gene_delta_escapes", "count_escapes"):
            bounded &= (shard[name] >= 1).all() and (shard[name] <= widths).all()
        bounded &= bool(((chunk["chunk_cells"] >= 1) & (chunk["chunk_cells"] <= MAX_CHUNK)).all())
        if not bounded or (chunk["chunk_nnz_used"] > widths[shard_of]).any():
            raise self._damaged("a chunk has more than a chunk may have")
        return shard | chunk | self._checked_files(table)

    def _checked_files(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Number, sizes and digests of the shards' files; names and paths are kept here.

        A shard's files lie in the shard's own places, so that no other file is ever opened. Nearly all shards have
        the same files, so what comes behind ``shards/NAME/`` (nothing, for the obs) is kept once.
        """
        files = self._flat(table, "files")
        path, size, sha256 = (files.field(name) for name in ("path", "size", "sha256"))
        if path.null_count or size.null_count or sha256.null_count:
            raise self._damaged("numbers are missing")
        names, paths = table["name"].to_pylist(), path.to_pylist()
        n_files = pc.list_value_length(table["files"]).to_numpy()
        first = 0
        for name, count in zip(names, n_files.tolist(), strict=True):
            if not is_shard_name(name):
                raise self._damaged("the shards' names are no distinct plain names")
            layout = tuple(self._ending(name, each) for each in paths[first : first + count])
            self._layouts.append(self._known_layouts.setdefault(layout, layout))
            first += count
        self.names += names
        if not pc.all(pc.match_substring_regex(sha256, f"^[0-9a-f]{{{_SHA256_HEX}}}$")).as_py():
            raise self._damaged("the checksum of a file is none")
        digests = np.frombuffer(bytes.fromhex("".join(sha256.to_pylist())), np.uint8)
        return {
            "n_files": n_files.astype(np.int64),
            "size": size.to_numpy(),
            "sha256": digests.reshape(-1, _SHA256_HEX // 2),
        }

    def _ending(self, name: str, path: str) -> str:
        folder = f"{SHARDS}/{name}/"
        if path == obs_file(name):
            return ""
        if not path.startswith(folder) or path == folder or ".." in path.split("/"):
            raise self._damaged(f"{path!r} is no file of shard {name}")
        return path.removeprefix(folder)

    def _check_totals(self, nnz: npt.NDArray[np.int64], manifest: dict[str, Any]) -> None:
        if len(set(self.names)) < len(self.names):
            raise self._damaged("the shards' names are no distinct plain names")
        totals = {"cells": int(self.first_rows[-1]), "nnz": sum(nnz.tolist()), "shards": len(self.names)}
        for name, total in totals.items():
            if manifest.get(name) != total:
                raise self._damaged(f"it has {total:,} {name} and the manifest {manifest.get(name)}")

    def _flat(self, table: pa.Table, name: str) -> pa.Array:
        """All elements of a column of lists."""
        values = table[name].combine_chunks().flatten()
        if values.null_count:
            raise self._damaged("numbers are missing")
        return values

    def _damaged(self, what: str) -> Exception:
        return damaged(self._store, "the index", what)


def _extend(array: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
    """Put ``values`` behind ``array``, in place: joined at the end, all parts would be in memory twice."""
    first = len(array)
    array.resize((first + len(values), *array.shape[1:]), refcheck=False)
    array[first:] = values


def _before(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
