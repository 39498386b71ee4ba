"""Opening a store and reading cells from it by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.store.format import (
    FORMAT,
    MANIFEST,
    MANIFEST_DIGEST,
    OBS,
    VERSION,
    damaged,
    digest_line,
    file_entries,
)
from cellfoundry_data.store.shard import Shard
from cellfoundry_data.vocabulary import Vocabulary


def open_store(path: str | Path) -> Store:
    """Open the store at ``path``.

    Raises:
        DataError: no store there, another format version, or files missing, cut short or altered (which shard
            is said).
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for owner, entries in owned_files(manifest):
        for entry in file_entries(entries):
            entry.check_size(folder, owner)
    for entry in file_entries(manifest["files"]):
        entry.read_checked(folder, "the frame")
    return Store(folder, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the store in ``folder``, after its format, version and checksum held."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} is not a CellFoundry store: it has no {MANIFEST}; "
            "make one with `cellfoundry data ingest`."
        )
    content = path.read_bytes()
    try:
        manifest = json.loads(content)
        name, version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder, "the manifest", f"{MANIFEST} is not readable") from error
    if name != FORMAT:
        raise DataError(f"{folder} is not a CellFoundry store: its {MANIFEST} says format {name!r}.")
    if version != VERSION:
        raise DataError(
            f"{folder} is a store of format version {version} and this CellFoundry reads version {VERSION}: "
            "ingest its sources again with this CellFoundry, or use the one that wrote it."
        )
    digest = folder / MANIFEST_DIGEST
    if not digest.is_file() or digest.read_bytes() != digest_line(content):
        raise damaged(folder, "the manifest", f"the checksum of {MANIFEST} differs")
    return manifest


def owned_files(manifest: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Every file that the manifest lists, under the part it belongs to."""
    return [
        ("the frame", manifest["files"]),
        *((f"shard {shard['name']}", shard["files"]) for shard in manifest["shards"]),
    ]


class Store:
    """An open store; its shards are opened, and what is read is checked, on first use. Pickles as its path.

    Attributes:
        path: the store's folder.
        manifest: manifest.json as it stands.
        first_rows: int64, (shards + 1,); first row of each shard, then the number of cells.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        cells = [shard["cells"] for shard in manifest["shards"]]
        self.first_rows = np.concatenate([[0], np.cumsum(cells)]).astype(np.int64)
        self._shards: list[Shard | None] = [None] * len(cells)
        self._vocabulary: Vocabulary | None = None
        self._obs: pa.Table | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)

    @property
    def n_cells(self) -> int:
        """Cells in the store."""
        return int(self.manifest["cells"])

    @property
    def n_genes(self) -> int:
        """Genes of the vocabulary."""
        return int(self.manifest["genes"])

    @property
    def vocabulary(self) -> Vocabulary:
        """The genes that gene ids count."""
        if self._vocabulary is None:
            self._vocabulary = Vocabulary.from_file(self.path / self.manifest["vocabulary"]["file"])
            if self._vocabulary.hash != self.manifest["vocabulary"]["hash"]:
                raise damaged(self.path, "the vocabulary", "its hash is not the manifest's")
        return self._vocabulary

    @property
    def obs(self) -> pa.Table:
        """Columns that describe the cells, (cells,), in row order; text as dictionary columns."""
        if self._obs is None:
            self._obs = pa.concat_tables(
                self.obs_of(index) for index in range(len(self._shards))
            ).unify_dictionaries()
        return self._obs

    def obs_of(self, shard: int) -> pa.Table:
        """The part of ``obs`` that belongs to the shard number ``shard``."""
        listed = self.manifest["shards"][shard]
        (entry,) = (file for file in file_entries(listed["files"]) if file.path.startswith(f"{OBS}/"))
        return pq.read_table(pa.BufferReader(entry.read_checked(self.path, f"shard {listed['name']}")))

    def obs_frame(self) -> pd.DataFrame:
        """``obs`` as pandas, (cells,); a boolean column with gaps is nullable, which AnnData can write."""
        frame = self.obs.to_pandas()
        for field in self.obs.schema:
            if pa.types.is_boolean(field.type) and self.obs[field.name].null_count:
                frame[field.name] = frame[field.name].astype("boolean")
        return frame

    def shard(self, index: int) -> Shard:
        """The shard number ``index``."""
        shard = self._shards[index]
        if shard is None:
            shard = self._shards[index] = Shard(self.path, self.manifest["shards"][index], self.n_genes)
        return shard

    def read_cells(self, rows: npt.ArrayLike) -> CellBatch:
        """The cells at ``rows`` (integers, (cells,)), in that order, repeats allowed; row ids are store rows.

        Raises:
            DataError: a row outside the store, or a shard whose bytes are not those that were written.
        """
        wanted = np.asarray(rows, np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self.n_cells):
            raise DataError(
                f"rows of the store {self.path} run from 0 to {self.n_cells - 1}: one outside was asked for."
            )
        unique, where = np.unique(wanted, return_inverse=True)
        distinct = self._read_ascending(unique)
        return distinct if np.array_equal(unique, wanted) else distinct.select(where)

    def _read_ascending(self, rows: npt.NDArray[np.int64]) -> CellBatch:
        """The cells at ``rows``, which ascend strictly; each chunk they touch is decoded once."""
        lengths = np.empty(len(rows), np.int64)
        spans = []
        for index in np.unique(np.searchsorted(self.first_rows, rows, side="right") - 1):
            start, stop = np.searchsorted(rows, self.first_rows[index : index + 2])
            shard = self.shard(index)
            local = rows[start:stop] - self.first_rows[index]
            lengths[start:stop] = shard.row_nnz[local]
            spans.append((shard, local, start))
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        gene_ids, counts = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        for shard, local, start in spans:
            chunk_of = np.searchsorted(shard.first_rows, local, side="right") - 1
            for chunk in np.unique(chunk_of):
                first, last = shard.first_rows[chunk : chunk + 2]
                destination = np.full(last - first, -1, np.int64)
                inside = np.flatnonzero(chunk_of == chunk)
                destination[local[inside] - first] = indptr[start + inside]
                shard.decode_chunk(chunk, destination, gene_ids, counts)
        return CellBatch(indptr, gene_ids, counts, rows)
