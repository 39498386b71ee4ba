"""The data layer on the bundled donor: ingest, random batches against backed h5ad, and the store's size.

CPU-seconds are those of this process, the loader's background thread included. Ray's workers are other processes,
so ingest is timed by the wall clock.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import anndata
import numpy as np

from cellfoundry_bench.measure import compare, cpu_clock, seconds
from cellfoundry_bench.results import Row, SuiteResult
from cellfoundry_data.bundled import baron_h5ad
from cellfoundry_data.ingest import ingest
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.ray_cluster import ray_cluster
from cellfoundry_data.store import open_store

BATCH_CELLS = 128
EPOCHS = 5  # a round, so that the faster side lasts long enough to be timed


def run() -> SuiteResult:
    """Ingest the donor into a temporary store and read it back."""
    with tempfile.TemporaryDirectory() as folder:
        source, store = baron_h5ad(Path(folder) / "donor.h5ad"), Path(folder) / "store"
        return SuiteResult([ingest_row(source, store), loader_row(source, store), size_row(source, store)])


def ingest_row(source: Path, store: Path) -> Row:
    """Cells per second of a whole ingest into ``store``, Ray already running."""
    work = functools.partial(ingest, [str(source)], str(store))
    with ray_cluster():
        work()
        taken = seconds(work)
    cells = open_store(store).n_cells
    note = "h5ad to finished store, wall time with Ray running, second run; so few cells are mostly task start-up"
    return Row(f"ingest of {cells:,} cells", cells / taken, "cells/s", note=note)


def loader_row(source: Path, store: Path, rounds: int = 5) -> Row:
    """Random batches of the loader against the same number of sorted random rows of a backed h5ad."""
    cells = open_store(store).n_cells
    dataset = ShardDataset(store, batch_cells=BATCH_CELLS)
    backed = anndata.read_h5ad(source, backed="r")
    rng = np.random.default_rng(0)

    def ours() -> None:
        for _ in range(EPOCHS):
            for batch in dataset:
                assert batch.nnz

    def peer() -> None:
        for _ in range(EPOCHS):
            order = rng.permutation(cells)
            for first in range(0, cells, BATCH_CELLS):
                assert backed.X[np.sort(order[first : first + BATCH_CELLS])].nnz

    timed = compare(ours, peer, rounds=rounds, clock=cpu_clock)
    backed.file.close()
    return timed.rate_row(
        f"random batches of {BATCH_CELLS} cells",
        EPOCHS * cells,
        "cells/CPU-s",
        "anndata, backed h5ad",
        note=f"{cells:,} cells, warm page cache; ours aligned to the vocabulary, the peer's as stored",
    )


def size_row(source: Path, store: Path) -> Row:
    """Bytes of everything in the store, and of the donor as gzipped h5ad, for each non-zero of either."""
    opened = open_store(store)
    nnz = opened.read_cells(np.arange(opened.n_cells)).nnz
    ours = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) / nnz
    donor = anndata.read_h5ad(source)
    gzipped = source.with_name("gzipped.h5ad")
    donor.write_h5ad(gzipped, compression="gzip")
    theirs = gzipped.stat().st_size / donor.X.nnz
    note = "real cells, obs, gene names and manifest included"
    return Row("bytes per non-zero", ours, "bytes", "h5ad, gzip", theirs, theirs / ours, note=note)
