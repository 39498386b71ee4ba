"""index/*.parquet: what every shard holds and which files it has, checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
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


@dataclass(frozen=True)
class ShardEntry:
    """One row of the index.

    Attributes:
        name: the shard's folder below ``shards/``.
        chunks: how many it has.
        chunk_nnz, gene_delta_escapes, count_escapes: widths of the arrays.
        chunk_cells, chunk_nnz_used: uint32, (chunks,); cells and entries of each chunk.
        files: its arrays and its obs.
    """

    name: str
    chunks: int
    chunk_nnz: int
    gene_delta_escapes: int
    count_escapes: int
    chunk_cells: npt.NDArray[np.uint32]
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
    """All shards of a store in order; 8 bytes a chunk and about 2 KB a shard are in memory.

    Attributes:
        names: the shards' names.
        first_rows, first_chunks: int64, (shards + 1,); rows and chunks before each shard, then the totals.
        chunk_cells: uint32, (chunks,); cells of each chunk.
        chunk_nnz: uint32, (chunks,); entries of each chunk.

    Raises:
        DataError: numbers that contradict each other or exceed what a chunk may have.
    """

    def __init__(self, parts: list[bytes], manifest: dict[str, Any], store: object) -> None:
        self._store = store
        try:
            tables = [
                pq.read_table(pa.BufferReader(part), schema=INDEX_SCHEMA, use_threads=False) for part in parts
            ]
            table = pa.concat_tables([INDEX_SCHEMA.empty_table(), *tables]).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise self._damaged("it is no table of shards") from error
        self.names: list[str] = table["name"].to_pylist()
        self.chunk_cells = _flat(table["chunk_cells"])
        self.chunk_nnz = _flat(table["chunk_nnz_used"])
        if any(column.null_count for column in table.columns):
            raise self._damaged("numbers are missing")
        self.first_rows = _before(table["cells"].to_numpy())
        self.first_chunks = _before(table["chunks"].to_numpy())
        self._widths = {
            name: table[name].to_numpy() for name in ("chunk_nnz", "gene_delta_escapes", "count_escapes")
        }
        self._files = table["files"].combine_chunks().flatten()
        self._first_files = _before(pc.list_value_length(table["files"]).to_numpy())
        self._check(table, manifest)
        pa.default_memory_pool().release_unused()  # 50 MB of a store of 50 M cells

    def entry(self, shard: int) -> ShardEntry:
        """The shard number ``shard``."""
        chunks = slice(*self.first_chunks[shard : shard + 2].tolist())
        first, last = self._first_files[shard : shard + 2].tolist()
        columns = (self._files.field(name).slice(first, last - first) for name in ("path", "size", "sha256"))
        return ShardEntry(
            name=self.names[shard],
            chunks=chunks.stop - chunks.start,
            chunk_nnz=int(self._widths["chunk_nnz"][shard]),
            gene_delta_escapes=int(self._widths["gene_delta_escapes"][shard]),
            count_escapes=int(self._widths["count_escapes"][shard]),
            chunk_cells=self.chunk_cells[chunks],
            chunk_nnz_used=self.chunk_nnz[chunks],
            files=tuple(map(FileEntry, *(column.to_pylist() for column in columns))),
        )

    def _check(self, table: pa.Table, manifest: dict[str, Any]) -> None:
        """Everything that a reader multiplies, allocates by or opens."""
        if not all(is_shard_name(name) for name in self.names) or len(set(self.names)) < len(self.names):
            raise self._damaged("the shards' names are no distinct plain names")
        totals = {
            "cells": self.first_rows[-1],
            "nnz": pc.sum(table["nnz"]).as_py() or 0,
            "shards": len(table),
        }
        for name, total in totals.items():
            if manifest.get(name) != total:
                raise self._damaged(f"it has {total:,} {name} and the manifest {manifest.get(name)}")
        for column in ("chunk_cells", "chunk_nnz_used"):
            if not np.array_equal(pc.list_value_length(table[column]).to_numpy(), table["chunks"].to_numpy()):
                raise self._damaged(f"{column} has another number of chunks")
        shards = np.repeat(np.arange(len(table)), table["chunks"].to_numpy())
        for values, column, whole in (
            (self.chunk_cells, "chunk_cells", "cells"),
            (self.chunk_nnz, "chunk_nnz_used", "nnz"),
        ):
            sums = np.bincount(shards, values, len(table)).astype(np.int64)
            if not np.array_equal(sums, table[whole].to_numpy()):
                raise self._damaged(f"{column} does not add up to {whole}")
        widths = self._widths["chunk_nnz"]
        bounded = (widths >= 1).all() and (widths <= MAX_CHUNK).all()
        for column in ("gene_delta_escapes", "count_escapes"):
            escapes = self._widths[column]
            bounded &= (escapes >= 1).all() and (escapes <= widths).all()
        bounded &= bool(((self.chunk_cells >= 1) & (self.chunk_cells <= MAX_CHUNK)).all())
        if not bounded or (self.chunk_nnz > widths[shards]).any():
            raise self._damaged("a chunk has more than a chunk may have")
        self._check_paths()

    def _check_paths(self) -> None:
        """A shard's files lie in the shard's own places, so that no other file is ever opened."""
        if any(self._files.field(name).null_count for name in ("path", "size", "sha256")):
            raise self._damaged("numbers are missing")
        paths = iter(self._files.field("path").to_pylist())
        for name, count in zip(self.names, np.diff(self._first_files).tolist(), strict=True):
            folder, obs = f"{SHARDS}/{name}/", obs_file(name)
            for path in islice(paths, count):
                if path != obs and (not path.startswith(folder) or ".." in path.split("/")):
                    raise self._damaged(f"{path!r} is no file of shard {name}")

    def _damaged(self, what: str) -> Exception:
        return damaged(self._store, "the index", what)


def _flat(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _before(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
