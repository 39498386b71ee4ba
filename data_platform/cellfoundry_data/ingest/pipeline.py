"""Ingest in two passes, each a Ray Data job: sources to sorted spill files, buckets of those to shards.

Cells are ordered by a hash of their identity and the seed, and a shard is a range of that order: the store is
the same whatever the number of workers. Memory is that of one spill file or one shard a worker, whatever the
size of the sources.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from cellfoundry_data import vocabulary
from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.jobs import map_items, silent_ray_data
from cellfoundry_data.ingest.obs_columns import common_schema, dictionary_encoded, source_obs
from cellfoundry_data.ingest.spill import SourceTask, as_batch, read_bucket, spill_source
from cellfoundry_data.ray_cluster import ray_cluster
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.store.replace import refuse_foreign_folder, replacing_store
from cellfoundry_data.store.writer import finish_store, start_store, write_shard
from cellfoundry_data.vocabulary import Vocabulary

Progress = Callable[[str, int, int], None]

CELLS_PER_SHARD = 16_384
"""About 26 M entries at 1,600 genes a cell: a worker sorts and encodes them in 1.2 GB."""

ENTRIES_PER_SHARD = 2**25
"""On average at most: cells with more genes make smaller shards, so that a worker's memory stays bounded."""


def ingest(
    sources: Sequence[str],
    store: str | Path,
    *,
    vocab: str = "scfoundation",
    min_genes: int = 200,
    seed: int = 0,
    layer: str | None = None,
    cells_per_shard: int = CELLS_PER_SHARD,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Align, filter and shuffle the cells of ``sources`` into a store, which appears whole or not at all.

    A cell is known by the number of its source in ``sources`` and its row there. An existing store at
    ``store`` is replaced when the new one is complete. Uses the Ray cluster that this process is connected
    to, else a local one.

    Args:
        sources: files or folders of raw counts; see ``readers.open_source``.
        store: folder to write.
        vocab: name or file of the gene vocabulary.
        min_genes: cells with fewer vocabulary genes are removed, as are cells without counts.
        seed: of the global shuffle.
        layer: which matrix of an AnnData; None is ``X``.
        cells_per_shard: cells of a shard, about; a worker's memory grows with it.
        progress: called with (label, done, total).

    Returns:
        The store's manifest.

    Raises:
        DataError: a source that cannot be used, no cell left, or a folder at ``store`` that is no store.
    """
    store = Path(store)
    refuse_foreign_folder(store)
    genes = vocabulary.load(vocab)
    opened = [_look_at(name, path, genes, layer) for name, path in zip(_names(sources), sources, strict=True)]
    total_cells = sum(source.n_cells for source in opened)
    schema = common_schema(source.schema for source in opened)

    with replacing_store(store) as folder, ray_cluster(), silent_ray_data():
        start_store(folder, genes)
        spilled = folder / "spill" / "sorted"
        spilled.mkdir(parents=True)
        tasks = [
            SourceTask(index, source.name, source.path, layer, schema, spilled, genes, min_genes, seed)
            for index, source in enumerate(opened)
        ]
        reports = _read_sources(tasks, total_cells, progress)
        entries = sum(report["nnz"] for report in reports)
        n_buckets = max(1, round(total_cells / cells_per_shard), -(-entries // ENTRIES_PER_SHARD))
        shards = _write_shards(folder, spilled, n_buckets, progress)
        shutil.rmtree(folder / "spill")
        return finish_store(folder, genes, shards, seed=seed, qc={"min_genes": min_genes}, sources=reports)


@dataclass(frozen=True)
class _Source:
    """What the driver keeps of a source after a look at it."""

    name: str
    path: str
    n_cells: int
    schema: pa.Schema


def _look_at(name: str, path: str, genes: Vocabulary, layer: str | None) -> _Source:
    """Open and align a source once, so that a wrong one is refused before any work."""
    source = SourceCells(path, genes, layer=layer)
    # Absolute, because a worker of a running cluster may stand in another folder.
    where = str(Path(path).absolute())
    return _Source(name, where, source.n_cells, source_obs(name, source.obs).schema)


def _names(sources: Sequence[str]) -> list[str]:
    """What the obs column ``source`` calls each source: its file name, or its path where names repeat."""
    if not sources:
        raise DataError("no source was given: name at least one file of counts.")
    if len({Path(path).resolve() for path in sources}) < len(sources):
        raise DataError("a source was given twice: its cells would be repeated in the store.")
    short = [Path(path).name for path in sources]
    return short if len(set(short)) == len(short) else list(sources)


def _read_sources(
    tasks: list[SourceTask], total_cells: int, progress: Progress | None
) -> list[dict[str, Any]]:
    """Spill every source; its reports in the order of the sources."""
    reports: dict[str, dict[str, Any]] = {}
    done = 0
    for report in map_items(spill_source, tasks):
        reports[report["name"]] = report
        done += report["cells_read"]
        if progress:
            progress("read cells", done, total_cells)
    if not any(report["cells"] for report in reports.values()):
        most = max(report["genes"] for report in reports.values())
        raise DataError(
            f"every one of the {total_cells:,} cells was removed: none has {tasks[0].min_genes} genes with counts (the "
            f"sources measure up to {most:,} of the vocabulary's genes); lower --min-genes or check the sources."
        )
    return [reports[task.name] for task in tasks]


def _write_shards(
    folder: Path, spilled: Path, n_buckets: int, progress: Progress | None
) -> list[dict[str, Any]]:
    """Write each bucket as a shard; the manifest's entries in the order of the buckets."""
    write = partial(_write_bucket, folder, spilled, n_buckets)
    entries = []
    for entry in map_items(write, range(n_buckets)):
        entries.append(entry)
        if progress:
            progress("write shards", len(entries), n_buckets)
    return sorted((entry for entry in entries if entry["cells"]), key=lambda entry: entry["name"])


def _write_bucket(folder: Path, spilled: Path, n_buckets: int, bucket: int) -> dict[str, Any]:
    """One bucket's cells in their final order, as a shard; a bucket without cells writes none."""
    table = read_bucket(spilled, bucket, n_buckets)
    if not len(table):
        return {"cells": 0}
    obs = dictionary_encoded(pa.Table.from_struct_array(table["obs"]))
    return write_shard(folder, f"{bucket:06d}", as_batch(table), table["cell_key"].to_numpy(), obs)
