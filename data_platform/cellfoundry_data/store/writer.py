"""Writing a store's parts: the frame, one shard at a time (any process, any order), and the manifest, which
comes last.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.store.encoding import encode
from cellfoundry_data.store.format import (
    CHUNK_NNZ,
    FORMAT,
    MANIFEST,
    MANIFEST_DIGEST,
    OBS,
    SHARDS,
    VERSION,
    VOCABULARY,
    ZSTD_LEVEL,
    FileEntry,
    digest_line,
)
from cellfoundry_data.vocabulary import Vocabulary

MAX_COUNT = 2**32 - 1


def start_store(folder: Path, vocabulary: Vocabulary) -> None:
    """Write what every shard needs around it into the empty ``folder``: vocabulary and Zarr groups."""
    zarr.open_group(folder, mode="w", zarr_format=3).create_group(SHARDS)
    (folder / OBS).mkdir()
    vocabulary.write_tsv(folder / VOCABULARY)


def write_shard(
    folder: Path,
    name: str,
    cells: CellBatch,
    keys: npt.NDArray[np.uint64],
    obs: pa.Table,
    chunk_nnz: int = CHUNK_NNZ,
) -> dict[str, Any]:
    """Write one shard and its obs; the same cells give the same bytes.

    Args:
        folder: the store under construction, after ``start_store``.
        name: the shard's name; shards follow each other in the order of the manifest.
        cells: the shard's rows in their final order, counts whole numbers up to 2^32 - 1.
        keys: uint64, (cells,); see ``cell_keys``.
        obs: the rows' obs, in the same order.
        chunk_nnz: entries of a chunk; a row never straddles two.

    Returns:
        The shard's entry in the manifest.

    Raises:
        DataError: counts that a byte with escapes cannot hold, or gene ids that do not ascend.
    """
    encoded = encode(cells.indptr, cells.gene_ids, _whole_counts(cells), chunk_nnz)
    group = zarr.open_group(folder / SHARDS / name, mode="w", zarr_format=3)
    for array_name in ("gene_delta", "count"):
        values = getattr(encoded, array_name)
        _write_array(group, array_name, values, chunks=(1, values.shape[1]), shards=values.shape)
    for array_name in ("gene_delta_escape", "count_escape", "row_nnz", "chunk_start"):
        _write_array(group, array_name, getattr(encoded, array_name))
    _write_array(group, "cell_key", keys)

    obs_file = folder / OBS / f"{name}.parquet"
    pq.write_table(obs, obs_file, compression="zstd", store_schema=True)
    files = [*FileEntry.tree(folder, folder / SHARDS / name), FileEntry.of(folder, obs_file)]
    return {
        "name": name,
        "cells": len(cells),
        "nnz": cells.nnz,
        "chunks": len(encoded.chunk_start) - 1,
        "chunk_nnz": encoded.gene_delta.shape[1],
        "files": [asdict(file) for file in files],
    }


def finish_store(
    folder: Path,
    vocabulary: Vocabulary,
    shards: list[dict[str, Any]],
    *,
    seed: int,
    qc: dict[str, Any],
    sources: list[dict[str, Any]],
) -> dict[str, Any]:
    """Write the manifest, which makes the folder a store, and return it."""
    frame = [folder / "zarr.json", folder / SHARDS / "zarr.json", folder / VOCABULARY]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "cells": sum(shard["cells"] for shard in shards),
        "genes": len(vocabulary),
        "nnz": sum(shard["nnz"] for shard in shards),
        "values": "counts",
        "codec": {"name": "zstd", "level": ZSTD_LEVEL, "checksum": "crc32c"},
        "seed": seed,
        "qc": qc,
        "vocabulary": {"file": VOCABULARY, "hash": vocabulary.hash},
        "sources": sources,
        "files": [asdict(FileEntry.of(folder, path)) for path in frame],
        "shards": shards,
    }
    content = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
    (folder / MANIFEST_DIGEST).write_bytes(digest_line(content))
    (folder / MANIFEST).write_bytes(content)
    return manifest


def _whole_counts(cells: CellBatch) -> npt.NDArray[np.uint32]:
    counts = cells.counts
    # Compared in float32, where the next value above the largest count is 2^32.
    if not ((counts >= 0) & (counts < 2.0**32) & (counts == np.floor(counts))).all():
        raise DataError(
            f"a store holds whole counts from 0 to {MAX_COUNT:,}, and these cells have other values."
        )
    ascends = np.diff(cells.gene_ids) > 0
    ascends[cells.indptr[1:-1][(cells.indptr[1:-1] > 0) & (cells.indptr[1:-1] < cells.nnz)] - 1] = True
    if not ascends.all() or (cells.gene_ids < 0).any():
        raise DataError("the gene ids of a cell must ascend from 0 or more to be stored.")
    return counts.astype(np.uint32)


def _write_array(
    group: zarr.Group,
    name: str,
    values: npt.NDArray[Any],
    chunks: tuple[int, ...] | None = None,
    shards: tuple[int, ...] | None = None,
) -> None:
    """Write an array, in one chunk unless told otherwise; chunks of zeros are written like any other."""
    group.create_array(
        name,
        data=values,
        chunks=chunks or tuple(max(1, size) for size in values.shape),
        shards=shards,
        filters=None,
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
