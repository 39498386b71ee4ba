"""Two readers iterate over a store while a writer replaces it and appends to it, as fast as each can.

    python benchmarks/soak/readers_and_writer.py --versions 500 --out result.json

All cells of a version of the store have the same counts, and each append brings as many cells as the first ingest: a
reader that ever saw parts of two versions would find other counts or another number of cells.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.store.cell_keys import cell_keys
from cellfoundry_data.store.reader import read_frame
from cellfoundry_data.store.replace import publish_additions, replacing_store, work_folder
from cellfoundry_data.store.writer import finish_store, start_store, write_shard
from cellfoundry_data.vocabulary import Vocabulary

GENES, SHARDS, SHARD_CELLS = 50, 3, 40
APPENDS = 3
"""Appends between two replacements."""

VOCABULARY = Vocabulary(tuple(f"GENE{gene}" for gene in range(GENES)))


def write_version(store: Path, version: int, source: int) -> None:
    """Replace the store by the cells of source 0, or append those of a further source."""
    if source == 0:
        with replacing_store(store) as folder:
            _write_cells(folder, version, source, None)
        return
    with work_folder(store) as work:
        folder = work / "store"
        folder.mkdir()
        _write_cells(folder, version, source, read_frame(store).manifest)
        publish_additions(folder, store)
        shutil.rmtree(work)


def _write_cells(folder: Path, version: int, source: int, previous: dict[str, Any] | None) -> None:
    start_store(folder, VOCABULARY)
    rows = np.arange(SHARD_CELLS, dtype=np.int64)
    entries = []
    for shard in range(SHARDS):
        cells = CellBatch(
            np.arange(SHARD_CELLS + 1, dtype=np.int64) * GENES,
            np.tile(np.arange(GENES, dtype=np.int32), SHARD_CELLS),
            np.full(SHARD_CELLS * GENES, version, np.float32),
            rows,
        )
        keys = cell_keys(source, rows + shard * SHARD_CELLS)
        obs = pa.table({"source": pa.array([f"{version}"] * SHARD_CELLS).dictionary_encode()})
        entries.append(write_shard(folder, f"{source}-{shard}", cells, keys, obs, chunk_nnz=10 * GENES))
    finish_store(
        folder, VOCABULARY, entries, seed=0, qc={}, sources=[{"name": f"{source}"}], previous=previous
    )


def read_versions(store: Path, wanted: int, seen: Queue[int]) -> None:
    """Open the store and read all of it, again and again until ``wanted`` versions of it were seen; a mix raises."""
    versions: set[tuple[float, int]] = set()
    reads = 0
    while len(versions) < wanted:
        dataset = ShardDataset(store, batch_cells=16)
        sources = len(dataset.store.manifest["sources"])
        cells = 0
        counts: set[float] = set()
        for batch in dataset:
            cells += len(batch)
            counts |= set(np.unique(batch.counts).tolist())
        labels = {float(label) for label in dataset.store.obs["source"].unique().to_pylist()}
        assert len(counts) == 1, f"cells of versions {counts}"
        assert labels == counts, f"cells of version {counts}, obs of {labels}"
        assert cells == sources * SHARDS * SHARD_CELLS, f"{cells} cells of {sources} sources"
        versions.add((counts.pop(), sources))
        reads += 1
    seen.put(reads)


def soak(store: Path, versions: int, readers: int = 2) -> dict[str, Any]:
    """Write until every reader has seen so many versions of the store; what each did.

    Raises AssertionError where a reader failed, or something is left of old stores at the end.
    """
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    reads: Queue[int] = context.Queue()
    write_version(store, 1, 0)
    processes = [context.Process(target=read_versions, args=(store, versions, reads)) for _ in range(readers)]
    for process in processes:
        process.start()
    step = 0
    while any(process.is_alive() for process in processes):
        step += 1
        write_version(store, 1 + step // (APPENDS + 1), step % (APPENDS + 1))
    assert all(process.exitcode == 0 for process in processes), "a reader failed"
    write_version(store, 0, 0)
    left = [path.name for path in store.parent.iterdir() if path != store]
    assert not left, f"left behind: {left}"
    return {
        "soak": "readers while a writer replaces and appends",
        "readers": readers,
        "versions_seen_by_each": versions,
        "whole_reads": [reads.get() for _ in processes],
        "stores_written": step + 2,
        "mixes": 0,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Run the soak and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", type=int, default=500, help="of the store that each reader sees")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(soak(Path(folder) / "store", arguments.versions), indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
