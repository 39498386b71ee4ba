"""Large stores, simulated or listed: the same hash, schema and reader as the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cellfoundry_bench.atlas.cells import synthetic_csr
from cellfoundry_bench.atlas.repeated import repeat_store
from cellfoundry_bench.atlas.simulate_store import Measured, bucket_sizes, shard_files, tables
from cellfoundry_bench.errors import BenchError
from cellfoundry_data.batch import CellBatch
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.store import open_store
from cellfoundry_data.store.cell_keys import buckets, cell_keys, shuffle_keys
from cellfoundry_data.store.writer import finish_store, start_store, write_shard
from cellfoundry_data.vocabulary import Vocabulary

ROWS = {
    "bytes per non-zero, compact, synthetic": 0.96,
    "bytes per non-zero, fast, synthetic": 2.0,
    "ingest of 200,000 cells": 4000.0,
    "one of 1 ranks, an epoch": 8.0,
    "one of 8 ranks, an epoch": 7.0,
}


def result(folder: Path, **changes: float | None) -> Path:
    rows = [{"what": what, "value": value} for what, value in (ROWS | changes).items()]
    path = folder / "data.json"
    path.write_text(json.dumps({"rows": rows}))
    return path


def test_buckets_hold_every_cell_and_are_those_of_ingest() -> None:
    sizes = bucket_sizes(250_000, 16)
    assert sizes.sum() == 250_000
    assert np.abs(sizes - 250_000 / 16).max() < 5 * np.sqrt(250_000 / 16)
    rows = np.arange(1000)
    direct = np.bincount(buckets(shuffle_keys(cell_keys(0, rows), 0), 16), minlength=16)
    np.testing.assert_array_equal(bucket_sizes(1000, 16), direct)


def test_tables_have_a_column_for_each_number_of_cells(tmp_path: Path) -> None:
    measured = Measured.of(result(tmp_path))
    lines = tables(measured, [100_000, 1_000_000]).splitlines()
    assert lines[0] == "|  | 100,000 cells | 1,000,000 cells |"
    cells = {line.split(" | ")[0].lstrip("| "): line.rstrip(" |").split(" | ")[1:] for line in lines[2:]}
    assert cells["shards"] == ["6", "61"]
    assert cells["files"] == [f"{6 * len(shard_files()):,}", f"{61 * len(shard_files()):,}"]
    assert cells["store, compact"] == ["153 MB", "1.53 GB"]


@pytest.mark.parametrize("what", ["ingest of 200,000 cells", "bytes per non-zero, fast, synthetic"])
def test_a_result_without_the_figures_is_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="run the data suite with its default size first"):
        Measured.of(result(tmp_path, **{what: None}))


def test_a_repeated_store_reads_like_one_of_that_size(tmp_path: Path) -> None:
    store, counts = tmp_path / "store", synthetic_csr(60, 50)
    store.mkdir()
    genes = Vocabulary(tuple(f"gene{number}" for number in range(50)))
    start_store(store, genes)
    cells = CellBatch(counts.indptr.astype(np.int64), counts.indices, counts.data, np.arange(60))
    obs = pa.table({"source": ["a"] * 60})
    shard = write_shard(store, "000000-000000", cells, np.arange(60, dtype=np.uint64), obs, chunk_nnz=500)
    finish_store(store, genes, [shard], seed=0, qc={}, sources=[])

    large = open_store(repeat_store(store, 7, tmp_path / "large"))
    assert large.n_cells == 420
    np.testing.assert_array_equal(large.read_cells(np.arange(180, 240)).counts, counts.data)
    assert len(large.obs) == 420
    seen = [batch.row_ids for batch in ShardDataset(large, batch_cells=50)]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(420))
