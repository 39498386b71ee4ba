"""Writing a store's parts: the frame, one shard at a time (any process, any order), the index, and the
manifest, which comes last.
"""

from __future__ import annotations

import os
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
from cellfoundry_data.store import codec, manifest
from cellfoundry_data.store.encoded_rows import EncodedRows, encode_rows
from cellfoundry_data.store.encoding import GENES_NOT_ASCENDING, NO_COUNT, NO_VALUE, chunked, problem_of
from cellfoundry_data.store.format import (
    CHUNK_NNZ,
    FORMAT,
    INDEX,
    INDEX_SCHEMA,
    MAX_CHUNK,
    OBS,
    SHARDS,
    VERSION,
    VOCABULARY,
    FileEntry,
    Profile,
    Values,
    data_file,
    is_qc_file,
    is_shard_name,
    obs_file,
    qc_file,
)
from cellfoundry_data.store.index import SHARDS_AT_ONCE
from cellfoundry_data.vocabulary import Vocabulary

MAX_COUNT = 2**32 - 1


def start_store(folder: Path, vocabulary: Vocabulary) -> None:
    """Write what every shard needs around it into the empty ``folder``: vocabulary and Zarr groups."""
    zarr.open_group(folder, mode="w", zarr_format=3).create_group(SHARDS)
    (folder / OBS).mkdir()
    (folder / INDEX).mkdir()
    vocabulary.write_tsv(folder / VOCABULARY)


def write_shard(
    folder: Path,
    name: str,
    cells: CellBatch,
    keys: npt.NDArray[np.uint64],
    obs: pa.Table,
    chunk_nnz: int = CHUNK_NNZ,
    *,
    values: Values = "counts",
    profile: Profile = "compact",
) -> dict[str, Any]:
    """Write one shard and its obs; the same cells give the same bytes.

    Args:
        folder: the store under construction, after ``start_store``.
        name: the shard's name, of letters, digits, ``-`` and ``_``; shards follow each other in the order of
            the index.
        cells: the shard's rows in their final order, at least one.
        keys: uint64, (cells,); see ``cell_keys``.
        obs: the rows' obs, in the same order.
        chunk_nnz: entries of a chunk; a row never straddles two.
        values: "counts" for whole numbers from 0 to 2^32 - 1, "float32" for finite numbers above 0.
        profile: "compact" (zstd) or "fast" (not compressed, twice the size).

    Returns:
        The shard's row in the index.

    Raises:
        DataError: measurements that ``values`` does not allow, or gene ids that do not ascend.
    """
    if not len(cells) or not is_shard_name(name):
        raise DataError(f"shard {name!r} cannot be written: it needs a plain name and at least one cell.")
    _check(cells, values)
    rows = encode_rows(cells, np.arange(len(cells)), values)
    return write_encoded_shard(folder, name, rows, keys, obs, chunk_nnz, values=values, profile=profile)


def write_encoded_shard(
    folder: Path,
    name: str,
    rows: EncodedRows,
    keys: npt.NDArray[np.uint64],
    obs: pa.Table,
    chunk_nnz: int = CHUNK_NNZ,
    *,
    values: Values,
    profile: Profile,
) -> dict[str, Any]:
    """``write_shard`` for cells that were checked and encoded before."""
    encoded = chunked(rows, keys, chunk_nnz)
    chunk_nnz = encoded.arrays["gene_delta"].shape[1]
    if chunk_nnz > MAX_CHUNK or encoded.chunk_cells.max() > MAX_CHUNK:
        raise DataError(
            f"shard {name} cannot be written: a chunk holds at most {MAX_CHUNK:,} entries and cells."
        )

    group = zarr.open_group(folder / SHARDS / name, mode="w", zarr_format=3)
    for array_name, array in encoded.arrays.items():
        _write_array(folder, group, array_name, array, data_file(name, array_name), profile)
    pq.write_table(obs, folder / obs_file(name), compression="zstd", store_schema=True)
    files = [*FileEntry.tree(folder, folder / SHARDS / name), FileEntry.of(folder, folder / obs_file(name))]
    return {
        "name": name,
        "cells": len(rows),
        "nnz": rows.nnz,
        "chunks": len(encoded.chunk_cells),
        "chunk_nnz": chunk_nnz,
        "gene_delta_escapes": encoded.arrays["gene_delta_escape"].shape[1],
        "count_escapes": encoded.arrays["count_escape"].shape[1] if values == "counts" else 1,
        "chunk_cells": encoded.chunk_cells.tolist(),
        "chunk_nnz_used": encoded.chunk_nnz_used.tolist(),
        "files": [asdict(file) for file in files],
    }


def write_index(folder: Path, generation: int, shards: list[dict[str, Any]]) -> None:
    """Write the rows that ``write_shard`` returned as the index of one ingest (0) or append (1, 2, ...)."""
    path = folder / INDEX / f"{generation:06d}.parquet"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    table = pa.Table.from_pylist(shards, schema=INDEX_SCHEMA)
    pq.write_table(table, temporary, compression="zstd", row_group_size=SHARDS_AT_ONCE)
    temporary.replace(path)


def finish_store(
    folder: Path,
    vocabulary: Vocabulary,
    shards: list[dict[str, Any]],
    *,
    seed: int,
    qc: dict[str, Any],
    sources: list[dict[str, Any]],
    values: Values = "counts",
    profile: Profile = "compact",
    previous: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the index of these shards and the manifest, which makes the folder a store, and return it.

    Args:
        folder: after ``start_store`` and ``write_shard``.
        vocabulary: as given to ``start_store``.
        shards: what ``write_shard`` returned, in the order of the store.
        seed, qc, sources: for the manifest.
        values, profile: as given to ``write_shard``.
        previous: the manifest of the store that these shards are appended to.

    Raises:
        DataError: the previous store has another vocabulary, values or profile.
    """
    old = previous or {"files": [], "sources": [], "cells": 0, "nnz": 0, "array_bytes": 0, "shards": 0}
    wanted = {
        "values": values,
        "profile": profile,
        "vocabulary": {"file": VOCABULARY, "hash": vocabulary.hash},
    }
    for name, value in wanted.items():
        if previous and previous[name] != value:
            raise DataError(
                f"cells cannot be appended to {folder}: its {name} is {previous[name]} and theirs is {value}; "
                "ingest them into a store of their own."
            )
    indexes = [file for file in old["files"] if file["path"].startswith(f"{INDEX}/")]
    histograms = [file for file in old["files"] if is_qc_file(file["path"])]
    generation = len(indexes)
    write_index(folder, generation, shards)
    newest = folder / INDEX / f"{generation:06d}.parquet"
    frame = [folder / "zarr.json", folder / SHARDS / "zarr.json", folder / VOCABULARY, newest]
    if (folder / qc_file(generation)).is_file():
        frame.append(folder / qc_file(generation))
    content = {
        "format": FORMAT,
        "version": VERSION,
        "cells": old["cells"] + sum(shard["cells"] for shard in shards),
        "genes": len(vocabulary),
        "nnz": old["nnz"] + sum(shard["nnz"] for shard in shards),
        "array_bytes": old["array_bytes"] + sum(map(_array_bytes, shards)),
        **wanted,
        "codec": {"name": "zstd" if profile == "compact" else "none", "checksum": "crc32c"},
        "seed": seed,
        "qc": qc,
        "shards": old["shards"] + len(shards),
        "sources": old["sources"] + sources,
        "files": indexes + histograms + [asdict(FileEntry.of(folder, path)) for path in frame],
    }
    manifest.write(folder, content)
    return content


def _array_bytes(shard: dict[str, Any]) -> int:
    """Bytes of a shard without its obs."""
    return sum(file["size"] for file in shard["files"] if file["path"].startswith(f"{SHARDS}/"))


def _check(cells: CellBatch, values: Values) -> None:
    problem = problem_of(cells.indptr, cells.gene_ids, cells.counts, values == "counts")
    if problem == GENES_NOT_ASCENDING:
        raise DataError("the gene ids of a cell must ascend from 0 or more to be stored.")
    if problem == NO_COUNT:
        raise DataError(
            f"a store of counts holds whole numbers from 0 to {MAX_COUNT:,}, and these cells have others: "
            "ingest a normalised matrix with --values float32."
        )
    if problem == NO_VALUE:
        raise DataError("a store of values holds finite numbers above 0, and these cells have others.")


def _write_array(
    folder: Path, group: zarr.Group, name: str, values: npt.NDArray[Any], path: str, profile: Profile
) -> None:
    """Write an array: its metadata by zarr-python, its one file here, a row a chunk and the index behind."""
    group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(1, values.shape[1]),
        shards=values.shape,
        filters=None,
        compressors=[ZstdCodec(level=1), Crc32cCodec()] if profile == "compact" else [Crc32cCodec()],
        fill_value=0,
    )
    file = folder / path
    file.parent.mkdir(parents=True)
    index = np.empty((len(values), 2), "<u8")
    with file.open("wb") as out:
        for row, chunk in enumerate(values):
            index[row] = out.tell(), out.write(codec.pack(chunk, profile))
        out.write(codec.seal(index.tobytes()))
