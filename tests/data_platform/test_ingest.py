"""Ingest: the cells of the sources, exactly, shuffled the same whatever the workers, or one clear sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest import ingest, pipeline, spill
from cellfoundry_data.ingest.obs_columns import common_schema, conform, dictionary_encoded, source_obs
from cellfoundry_data.store import open_store, verify
from cellfoundry_data.vocabulary import Vocabulary, load

GENES = [f"GENE{number}" for number in range(400)]


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    path = tmp_path / "genes.tsv"
    Vocabulary(tuple(GENES)).write_tsv(path)
    return str(path)


def write_h5ad(path: Path, counts: sp.csr_matrix, genes: list[str], obs: dict[str, Any]) -> str:
    names = [f"{path.stem}_{row}" for row in range(counts.shape[0])]
    adata = anndata.AnnData(
        counts.astype(np.float32), obs=pd.DataFrame(obs, index=names), var=pd.DataFrame(index=genes)
    )
    adata.write_h5ad(path)
    return str(path)


def random_counts(n_cells: int, n_genes: int, seed: int) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.4, (n_cells, n_genes)) * rng.choice(
        [1, 70_000], (n_cells, n_genes), p=[0.99, 0.01]
    )
    return sp.csr_matrix(counts)


@contextmanager
def one_worker() -> Iterator[None]:
    from ray.data import DataContext, ExecutionResources

    options = DataContext.get_current().execution_options
    before = options.resource_limits
    options.resource_limits = ExecutionResources(cpu=1, object_store_memory=100 * 2**20)
    try:
        yield
    finally:
        options.resource_limits = before


@pytest.mark.usefixtures("ray_local")
def test_baron_is_stored_exactly(baron_h5ad: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    manifest = ingest([str(baron_h5ad)], tmp_path / "store", progress=lambda *step: steps.append(step))
    store = open_store(tmp_path / "store")

    adata = anndata.read_h5ad(baron_h5ad)
    position = {gene: index for index, gene in enumerate(store.vocabulary.genes)}
    columns = [column for column, gene in enumerate(adata.var_names) if gene in position]
    target = [position[adata.var_names[column]] for column in columns]
    selection = sp.csr_matrix(
        (np.ones(len(columns)), (columns, target)), shape=(adata.n_vars, len(position)), dtype=np.float32
    )
    expected = (adata.X @ selection).tocsr()
    expected.sort_indices()

    rows = np.asarray(store.obs["source_row"])
    cells = store.read_cells(np.arange(store.n_cells))
    actual = sp.csr_matrix((cells.counts, cells.gene_ids, cells.indptr), shape=(store.n_cells, store.n_genes))
    assert sorted(rows) == list(range(adata.n_obs))
    assert (actual != expected[rows]).nnz == 0
    assert store.obs["cell_name"].to_pylist() == adata.obs_names[rows].tolist()
    assert store.obs["cell_type"].to_pylist() == adata.obs["cell_type"].iloc[rows].tolist()
    assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.1

    (source,) = manifest["sources"]
    assert (source["cells_read"], source["cells"], source["nnz"]) == (1937, 1937, expected.nnz)
    assert source["genes"] == len(columns)
    assert source["share_of_counts_kept"] == pytest.approx(expected.sum() / adata.X.sum())
    assert manifest == store.manifest
    assert not verify(tmp_path / "store").bad
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert steps[0] == ("read cells", 1937, 1937)
    assert steps[-1] == ("write shards", 1, 1)


@pytest.mark.usefixtures("ray_local")
def test_two_sources_are_shuffled_together_the_same_with_one_worker_or_two(
    tmp_path: Path, vocabulary: str
) -> None:
    sparse_rows = np.ones((400, 400), np.int64)
    sparse_rows[:7] = 0
    sparse_rows[7:10, 5:] = 0
    first = random_counts(400, 400, seed=1).multiply(sparse_rows).tocsr()
    second = random_counts(300, 350, seed=2)
    second_genes = [*GENES[300:], *(f"OTHER{number}" for number in range(250))]
    sources = [
        write_h5ad(
            tmp_path / "a.h5ad", first, GENES, {"tissue": pd.Categorical(["lung"] * 400), "age": [3] * 400}
        ),
        write_h5ad(tmp_path / "b.h5ad", second, second_genes, {"age": [0.5] * 300, "source": ["lab"] * 300}),
    ]
    options: dict[str, Any] = {"vocab": vocabulary, "min_genes": 10, "cells_per_shard": 150, "seed": 5}
    manifest = ingest(sources, tmp_path / "two", **options)
    with one_worker():
        again = ingest(sources, tmp_path / "one", **options)
    assert again == manifest
    assert len(manifest["shards"]) == 5
    assert ingest(sources, tmp_path / "two", **{**options, "seed": 6})["shards"] != manifest["shards"]

    a, b = manifest["sources"]
    assert (a["removed_without_counts"], a["removed_min_genes"], a["cells"]) == (7, 3, 390)
    assert (b["cells_read"], b["cells"], b["genes"], b["dropped_columns"]) == (300, 300, 100, 250)
    assert b["share_of_counts_kept"] == pytest.approx(second[:, :100].sum() / second.sum())

    store = open_store(tmp_path / "one")
    obs = store.obs.to_pandas()
    counts = {"a.h5ad": first.toarray(), "b.h5ad": np.zeros((300, 400))}
    counts["b.h5ad"][:, 300:] = second[:, :100].toarray()
    cells = store.read_cells(np.arange(store.n_cells))
    actual = sp.csr_matrix((cells.counts, cells.gene_ids, cells.indptr), shape=(690, 400)).toarray()
    for row, (source, source_row) in enumerate(zip(obs["source"], obs["source_row"], strict=True)):
        np.testing.assert_array_equal(actual[row], counts[source][source_row])
    assert not obs.duplicated(["source", "source_row"]).any()
    assert set(obs["tissue"].dropna()) == {"lung"}
    assert obs.loc[obs["source"] == "b.h5ad", "tissue"].isna().all()
    assert obs.groupby("source", observed=True)["age"].unique().map(list).to_dict() == {
        "a.h5ad": [3.0],
        "b.h5ad": [0.5],
    }
    assert set(obs["source_"].dropna()) == {"lab"}
    # Every shard holds cells of both sources in their proportion: the shuffle is global.
    of_shard = np.searchsorted(store.first_rows, np.arange(690), side="right")
    shares = (obs["source"] == "a.h5ad").groupby(of_shard).mean()
    assert ((shares > 0.4) & (shares < 0.75)).all()


@pytest.mark.usefixtures("ray_local")
def test_a_worker_error_keeps_the_old_store_and_its_sentence(
    tmp_path: Path, vocabulary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_h5ad(tmp_path / "good.h5ad", random_counts(50, 400, seed=1), GENES, {})
    store = tmp_path / "store"
    monkeypatch.chdir(tmp_path)  # where no worker of the running cluster stands
    manifest = ingest(["good.h5ad"], store, vocab=vocabulary, min_genes=1)
    from ray.data import DataContext

    bars = DataContext.get_current().enable_progress_bars

    negative = random_counts(50, 400, seed=2)
    negative.data[17] = -3
    bad = write_h5ad(tmp_path / "bad.h5ad", negative, GENES, {})
    with pytest.raises(
        DataError, match=r"^bad\.h5ad: row \d+ .* has the value -3; counts cannot be negative\.$"
    ):
        ingest([good, bad], store, vocab=vocabulary, min_genes=1)
    with pytest.raises(DataError, match=r"every one of the 50 cells was removed.*lower --min-genes"):
        ingest([good], store, vocab=vocabulary, min_genes=399)

    assert open_store(store).manifest == manifest
    assert not verify(store).bad
    assert DataContext.get_current().enable_progress_bars == bars
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_wrong_sources_are_refused_before_any_work(tmp_path: Path, vocabulary: str) -> None:
    good = write_h5ad(tmp_path / "good.h5ad", random_counts(5, 400, seed=1), GENES, {})
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("text")
    for sources, store, message in [
        ([], tmp_path / "store", "no source was given"),
        ([good, good], tmp_path / "store", "given twice"),
        ([good, f"{tmp_path}/thesis/../good.h5ad"], tmp_path / "store", "given twice"),
        ([good, str(tmp_path / "missing.h5ad")], tmp_path / "store", r"missing\.h5ad: no such file"),
        ([good], foreign, "is not a CellFoundry store"),
    ]:
        with pytest.raises(DataError, match=message):
            ingest(sources, store, vocab=vocabulary)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("entries_a_file", [1, 400, 10**9])
def test_cells_of_all_spilled_files_come_back(
    entries_a_file: int, tmp_path: Path, vocabulary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "BLOCK_CELLS", 7)
    monkeypatch.setattr(spill, "SPILL_ENTRIES", entries_a_file)
    counts = random_counts(21, 400, seed=3)
    path = write_h5ad(tmp_path / "a.h5ad", counts, GENES, {})
    folder = tmp_path / "spill" / "sorted"
    folder.mkdir(parents=True)
    schema = source_obs("a", anndata.read_h5ad(path).obs).schema
    task = spill.SourceTask(0, "a", path, None, schema, folder, load(vocabulary), 1, 0)
    report = spill.spill_source(task)
    assert (report["cells"], report["nnz"]) == (21, counts.nnz)
    assert len(list(folder.iterdir())) == (1 if entries_a_file == 10**9 else 3)
    table = spill.read_bucket(folder, 0, 1)
    cells = spill.as_batch(table)
    rows = pa.Table.from_struct_array(table["obs"])["source_row"].to_numpy()
    spilled = sp.csr_matrix((cells.counts, cells.gene_ids, cells.indptr), shape=(21, 400))
    assert (spilled != counts[rows]).nnz == 0


@pytest.mark.usefixtures("ray_local")
def test_cells_with_many_genes_make_smaller_shards(
    tmp_path: Path, vocabulary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = random_counts(60, 400, seed=4)
    monkeypatch.setattr(pipeline, "ENTRIES_PER_SHARD", counts.nnz // 3)
    path = write_h5ad(tmp_path / "a.h5ad", counts, GENES, {})
    manifest = ingest([path], tmp_path / "store", vocab=vocabulary, min_genes=1)
    assert len(manifest["shards"]) == 4
    assert manifest["cells"] == 60


KILLED_INGEST = """
import json, os, signal, sys
from cellfoundry_data.ingest import ingest

def progress(label, done, total):
    if label == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)

ingest(json.loads(sys.argv[2]), sys.argv[3], vocab=sys.argv[4], min_genes=1, cells_per_shard=20, progress=progress)
"""


@pytest.mark.usefixtures("ray_local")
def test_a_killed_ingest_leaves_the_old_store_and_does_not_block_the_next(
    tmp_path: Path, vocabulary: str
) -> None:
    old = write_h5ad(tmp_path / "old.h5ad", random_counts(30, 400, seed=1), GENES, {})
    new = write_h5ad(tmp_path / "new.h5ad", random_counts(60, 400, seed=2), GENES, {})
    store = tmp_path / "store"
    manifest = ingest([old], store, vocab=vocabulary, min_genes=1)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_INGEST, "write shards", json.dumps([new]), str(store), vocabulary],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / ".store.partial").is_dir()
    assert open_store(store).manifest == manifest
    assert not verify(store).bad

    assert ingest([new], store, vocab=vocabulary, min_genes=1)["cells"] == 60
    assert not verify(store).bad
    assert not (tmp_path / ".store.partial").exists()


def test_obs_of_any_type_becomes_columns_of_one_schema() -> None:
    first = pd.DataFrame(
        {
            "text": pd.Categorical(["x", None, "y"]),
            "number": [1, 2, 3],
            "mixed": [1, "a", None],
            "flag": [True, False, True],
            "level": pd.Categorical([10, 20, 10]),
            "period": pd.period_range("2020", periods=3, freq="Y"),
            "cell_name": ["p", "q", "r"],
            7: [0.5, 1.5, np.nan],
            "gone": [None, None, None],
        },
        index=["c0", "c1", "c2"],
    )
    second = pd.DataFrame({"number": [0.5], "flag": ["maybe"], "gone": [np.nan]}, index=["d0"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = [source_obs("a", first), source_obs("b", second)]
    schema = common_schema(table.schema for table in tables)
    merged = dictionary_encoded(pa.concat_tables([conform(table, schema) for table in tables])).to_pydict()
    assert merged == {
        "source": ["a", "a", "a", "b"],
        "source_row": [0, 1, 2, 0],
        "cell_name": ["c0", "c1", "c2", "d0"],
        "text": ["x", None, "y", None],
        "number": [1.0, 2.0, 3.0, 0.5],
        "mixed": ["1", "a", None, None],
        "flag": ["true", "false", "true", "maybe"],
        "level": [10, 20, 10, None],
        "period": ["2020", "2021", "2022", None],
        "cell_name_": ["p", "q", "r", None],
        "7": [0.5, 1.5, None, None],
        "gone": [None, None, None, None],
    }


def test_numbers_that_no_common_type_holds_become_text() -> None:
    labels = pd.DataFrame(
        {"unsigned": np.array([2**63 + 1], np.uint64), "id": [2**60 + 1], "n": [2**53], "a/b": [1]}
    )
    numbers = pd.DataFrame({"unsigned": [-1], "id": [0.5], "n": [0.5], "a_b": [2]})
    tables = [source_obs("a", labels), source_obs("b", numbers)]
    schema = common_schema(table.schema for table in tables)
    merged = pa.concat_tables([conform(table, schema) for table in tables]).select(
        ["unsigned", "id", "n", "a_b"]
    )
    assert merged.to_pydict() == {
        "unsigned": [str(2**63 + 1), "-1"],
        "id": [str(2**60 + 1), "0.5"],
        "n": [2.0**53, 0.5],
        "a_b": [1, 2],
    }
