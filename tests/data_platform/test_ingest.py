"""Ingest: the cells of the sources, exactly, shuffled the same whatever the workers, or one clear sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest import ingest, jobs, pipeline, plan, runs, shards, spill
from cellfoundry_data.ingest.duplicate_keys import unmixed
from cellfoundry_data.qc import QcHistograms, QcLimits
from cellfoundry_data.store import open_store, verify
from cellfoundry_data.store.cell_keys import cell_keys
from cellfoundry_data.vocabulary import Vocabulary, align

GENES = [f"GENE{number}" for number in range(400)]

WriteSource = Callable[..., str]


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    path = tmp_path / "genes.tsv"
    Vocabulary(tuple(GENES)).write_tsv(path)
    return str(path)


def random_counts(n_cells: int, n_genes: int, seed: int) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.4, (n_cells, n_genes)) * rng.choice(
        [1, 70_000], (n_cells, n_genes), p=[0.99, 0.01]
    )
    return sp.csr_matrix(counts)


def dense(store: Path) -> np.ndarray:
    opened = open_store(store)
    cells = opened.read_cells(np.arange(opened.n_cells))
    matrix = sp.csr_matrix((cells.counts, cells.gene_ids, cells.indptr), (opened.n_cells, opened.n_genes))
    return np.asarray(matrix.toarray())


def files(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()
    }


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
    target = align(adata.var_names.tolist(), store.vocabulary).column_to_gene
    columns = np.flatnonzero(target >= 0)
    selection = sp.csr_matrix(
        (np.ones(len(columns)), (columns, target[columns])), (adata.n_vars, store.n_genes), dtype=np.float32
    )
    expected = (adata.X @ selection).tocsr()

    obs = store.obs_frame()
    rows = obs["source_row"].to_numpy()
    assert sorted(rows) == list(range(adata.n_obs))
    np.testing.assert_array_equal(dense(tmp_path / "store"), expected[rows].toarray())
    assert obs["cell_name"].tolist() == adata.obs_names[rows].tolist()
    assert obs["cell_type"].tolist() == adata.obs["cell_type"].iloc[rows].tolist()
    assert obs["n_genes"].tolist() == (expected[rows] > 0).sum(axis=1).ravel().tolist()[0]
    assert obs["total_counts"].tolist() == expected[rows].sum(axis=1).ravel().tolist()[0]
    assert not obs["duplicate"].any()
    assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.1

    (source,) = manifest["sources"]
    assert (source["cells_read"], source["cells"], source["nnz"]) == (1937, 1937, expected.nnz)
    assert (source["format"], source["matrix"]) == ("h5ad", "X")
    assert source["genes"] == source["matched_columns"] == len(columns)
    assert source["share_of_counts_kept"] == pytest.approx(expected.sum() / adata.X.sum())
    assert manifest == store.manifest
    assert not verify(tmp_path / "store").bad
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert steps[0] == ("check sources", 1, 1)
    assert ("read cells", 1937, 1937) in steps
    assert ("read bytes", baron_h5ad.stat().st_size, baron_h5ad.stat().st_size) in steps
    assert steps[-1] == ("write shards", 1, 1)


@pytest.mark.usefixtures("ray_local")
def test_two_sources_are_shuffled_together_the_same_with_one_worker_or_two(
    tmp_path: Path, vocabulary: str, write_source: WriteSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PART_CELLS", 90)
    sparse_rows = np.ones((400, 400), np.int64)
    sparse_rows[:7] = 0
    sparse_rows[7:10, 5:] = 0
    first = random_counts(400, 400, seed=1).multiply(sparse_rows).tocsr()
    second = random_counts(300, 350, seed=2)
    second_genes = [*GENES[300:], *(f"OTHER{number}" for number in range(250))]
    sources = [
        write_source(tmp_path / "a.h5ad", first, GENES, tissue=pd.Categorical(["lung"] * 400), age=[3] * 400),
        write_source(tmp_path / "b.h5ad", second, second_genes, age=[0.5] * 300, source=["lab"] * 300),
    ]
    options: dict[str, Any] = {"vocab": vocabulary, "min_genes": 10, "cells_per_shard": 150, "seed": 5}
    manifest = ingest(sources, tmp_path / "two", **options)
    with one_worker():
        ingest(sources, tmp_path / "one", **options)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert manifest["shards"] == 5
    assert ingest(sources, tmp_path / "two", **{**options, "seed": 6})["files"] != manifest["files"]

    a, b = manifest["sources"]
    assert (a["removed"]["without_counts"], a["removed"]["min_genes"], a["cells"]) == (7, 3, 390)
    assert (b["cells_read"], b["cells"], b["genes"], b["dropped_columns"]) == (300, 300, 100, 250)
    assert b["share_of_counts_kept"] == pytest.approx(second[:, :100].sum() / second.sum())
    histograms = QcHistograms.from_table(pq.read_table(tmp_path / "one" / "qc.parquet"))
    assert histograms["a.h5ad"].n_genes.sum(axis=1).tolist() == [400, 390]

    store = open_store(tmp_path / "one")
    obs = store.obs_frame()
    counts = {"a.h5ad": first.toarray(), "b.h5ad": np.zeros((300, 400))}
    counts["b.h5ad"][:, 300:] = second[:, :100].toarray()
    stored = dense(tmp_path / "one")
    for row, (source, source_row) in enumerate(zip(obs["source"], obs["source_row"], strict=True)):
        np.testing.assert_array_equal(stored[row], counts[source][source_row])
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
def test_equal_cells_are_flagged_but_for_the_first(
    tmp_path: Path, vocabulary: str, write_source: WriteSource
) -> None:
    counts = random_counts(40, 400, seed=1)
    again = sp.vstack([random_counts(10, 400, seed=2), counts[[3, 3, 8]]]).tocsr()
    sources = [
        write_source(tmp_path / "a.h5ad", counts, GENES),
        write_source(tmp_path / "b.h5ad", again, GENES),
    ]
    manifest = ingest(sources, tmp_path / "store", vocab=vocabulary, min_genes=1, cells_per_shard=20)
    obs = open_store(tmp_path / "store").obs_frame()
    flagged = obs.loc[obs["duplicate"], ["source", "source_row"]]
    assert sorted(flagged.itertuples(index=False, name=None)) == [
        ("b.h5ad", 10),
        ("b.h5ad", 11),
        ("b.h5ad", 12),
    ]
    assert [source["duplicates"] for source in manifest["sources"]] == [0, 3]
    assert manifest["cells"] == 53


@pytest.mark.usefixtures("ray_local")
def test_limits_remove_cells_and_say_how_many(
    tmp_path: Path, vocabulary: str, write_source: WriteSource
) -> None:
    counts = sp.csr_matrix(np.diag([5.0, 50.0, 500.0]) @ np.ones((3, 400)))
    source = write_source(tmp_path / "a.h5ad", counts, GENES)
    limits = QcLimits(min_genes=1, min_total=10 * 400, max_total=100 * 400)
    manifest = ingest([source], tmp_path / "store", vocab=vocabulary, limits=limits)
    removed = manifest["sources"][0]["removed"]
    assert (removed["min_total"], removed["max_total"], manifest["cells"]) == (1, 1, 1)
    assert manifest["qc"] == limits.model_dump()
    with pytest.raises(DataError, match="both given"):
        ingest([source], tmp_path / "store", vocab=vocabulary, limits=limits, min_genes=3)


@pytest.mark.usefixtures("ray_local")
def test_fractions_are_stored_as_float32_in_either_profile(
    tmp_path: Path, vocabulary: str, write_source: WriteSource
) -> None:
    normalised = random_counts(30, 400, seed=1).astype(np.float32)
    normalised.data = np.log1p(normalised.data)
    source = write_source(tmp_path / "a.h5ad", normalised, GENES)
    with pytest.raises(DataError, match="normalised"):
        ingest([source], tmp_path / "store", vocab=vocabulary, min_genes=1)
    for profile in ("compact", "fast"):
        store = tmp_path / profile
        manifest = ingest([source], store, vocab=vocabulary, min_genes=1, values="float32", profile=profile)
        assert (manifest["values"], manifest["profile"]) == ("float32", profile)
        rows = np.asarray(open_store(store).obs["source_row"])
        np.testing.assert_array_equal(dense(store), normalised[rows].toarray())


@pytest.mark.usefixtures("ray_local")
def test_appended_cells_follow_the_stores_own(
    tmp_path: Path, vocabulary: str, write_source: WriteSource
) -> None:
    first, second = random_counts(40, 400, seed=1), random_counts(30, 400, seed=2)
    old = write_source(tmp_path / "a.h5ad", first, GENES, donor=["x"] * 40, age=[0.5] * 40)
    (tmp_path / "other").mkdir()
    more = [
        write_source(tmp_path / "b.h5ad", sp.vstack([second, first[[5]]]).tocsr(), GENES, age=range(31)),
        write_source(tmp_path / "other" / "a.h5ad", second[[7]], GENES, donor=["y"], site=["lab"]),
    ]
    store = tmp_path / "store"
    options: dict[str, Any] = {"vocab": vocabulary, "min_genes": 1, "cells_per_shard": 20}
    alone = ingest([old], store, **options)
    before = files(store)
    reader = open_store(store)
    with pytest.warns(UserWarning, match="obs columns that store does not have were left out: site"):
        manifest = ingest(more, store, append=True, **options)
    assert reader.manifest == alone
    assert len(reader.read_cells(np.arange(reader.n_cells))) == 40

    assert {path: content for path, content in files(store).items() if path in before} == before | {
        "manifest.json": (store / "manifest.json").read_bytes()
    }
    assert not verify(store).bad
    opened = open_store(store)
    assert (manifest["cells"], opened.n_cells, manifest["shards"]) == (72, 72, alone["shards"] + 2)
    assert [source["name"] for source in manifest["sources"]] == ["a.h5ad", *more]
    assert [source["duplicates"] for source in manifest["sources"]] == [0, 1, 1]
    obs = opened.obs_frame()
    assert set(obs["source"][:40]) == {"a.h5ad"}
    assert set(obs["donor"].dropna()) == {"x", "y"}
    assert sorted(obs["age"][40:].dropna()) == list(range(31))
    keys = np.concatenate([opened.cell_keys(shard) for shard in range(manifest["shards"])])
    assert len(np.unique(keys)) == 72
    counts = {"a.h5ad": first, more[0]: sp.vstack([second, first[[5]]]).tocsr(), more[1]: second[[7]]}
    stored = dense(store)
    for row, (source, source_row) in enumerate(zip(obs["source"], obs["source_row"], strict=True)):
        np.testing.assert_array_equal(stored[row], counts[source][[source_row]].toarray()[0])
    named = QcHistograms.from_table(pq.read_table(store / "qc-000001.parquet"))
    assert set(named) == set(more)


@pytest.mark.usefixtures("ray_local")
def test_an_append_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, vocabulary: str, write_source: WriteSource
) -> None:
    old = write_source(tmp_path / "old.h5ad", random_counts(20, 400, seed=1), GENES, age=[3] * 20)
    new = write_source(tmp_path / "new.h5ad", random_counts(20, 400, seed=2), GENES)
    other = tmp_path / "other.tsv"
    Vocabulary(tuple(GENES[::-1])).write_tsv(other)
    store = tmp_path / "store"
    options: dict[str, Any] = {"vocab": vocabulary, "min_genes": 1}
    with pytest.raises(DataError, match="there is no store"):
        ingest([new], store, append=True, **options)
    ingest([old], store, **options)
    before = files(store)
    aged = write_source(tmp_path / "aged.h5ad", random_counts(9, 400, seed=3), GENES, age=["old"] * 9)
    for source, change, message in [
        (aged, {}, r"its obs column age is string and that of the store .* is int64"),
        (old, {}, r"old\.h5ad is in the store .* already"),
        (new, {"vocab": str(other)}, "its vocabulary is"),
        (new, {"values": "float32"}, "its values is counts and theirs is float32"),
        (new, {"profile": "fast"}, "its profile is compact and theirs is fast"),
        (new, {"seed": 1}, "its seed is 0 and theirs is 1"),
        (new, {"min_genes": 2}, "its min_genes is 1 and theirs is 2"),
    ]:
        with pytest.raises(DataError, match=message):
            ingest([source], store, append=True, **{**options, **change})
    assert files(store) == before


def test_names_of_sources_differ_and_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan.source_names(["b.h5ad"], {"a.h5ad"}) == ["b.h5ad"]
    assert plan.source_names(["a.h5ad"], {"a.h5ad"}) == [str(tmp_path / "a.h5ad")]
    url = "https://me:key@host/x/a.h5ad"
    assert plan.source_names([f"{url}?signature=secret"], set()) == ["a.h5ad"]
    assert plan.source_names([f"{url}?signature=secret"], {"a.h5ad"}) == ["https://host/x/a.h5ad"]
    with pytest.raises(DataError, match="but for its query"):
        plan.source_names([f"{url}?1", f"{url}?2"], set())
    lots = [f"s3://bucket/lot #{lot}?/a.h5ad" for lot in (1, 2)]
    assert plan.source_names(lots, set()) == lots
    secret = "simplecache::https://user:word@host/x/a.h5ad?signature=secret#part"
    assert plan.public_path(secret) == "simplecache::https://host/x/a.h5ad"


def test_a_cells_identity_comes_back_from_its_key() -> None:
    rows = np.array([0, 1, 2**40 - 1])
    assert (unmixed(cell_keys(7, rows)) == np.uint64(7 * 2**40) + rows.astype(np.uint64)).all()


def test_a_source_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, vocabulary: str, write_source: WriteSource
) -> None:
    path = write_source(tmp_path / "a.h5ad", random_counts(5, 400, seed=1), GENES)
    options = pipeline._options(vocabulary, None, None, "counts", None, 1, 0)
    (look,) = plan.look_at_sources([path], ["a"], 0, options, None)
    (tmp_path / "parts").mkdir()
    task = spill.PartTask(look, options, look.schema, 0, 0, 5, tmp_path, tmp_path / "parts")
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match=r"a\.h5ad: was changed while it was read; run"):
        list(spill.spill_part(task))
    assert not task.target.exists()


@pytest.mark.usefixtures("ray_local")
def test_a_source_of_which_no_cell_is_kept_is_named(
    tmp_path: Path, vocabulary: str, write_source: WriteSource
) -> None:
    empty = write_source(tmp_path / "empty.h5ad", sp.csr_matrix((3, 400)), GENES)
    good = write_source(tmp_path / "good.h5ad", random_counts(5, 400, seed=1), GENES)
    with pytest.raises(DataError, match=r"without_counts 3.*; check the sources, or name .* --layer\.$"):
        ingest([empty], tmp_path / "store", vocab=vocabulary)
    with pytest.warns(UserWarning, match=r"empty\.h5ad: no cell is kept"):
        ingest([empty, good], tmp_path / "store", vocab=vocabulary, min_genes=1)


def test_obs_is_read_range_by_range(
    tmp_path: Path, vocabulary: str, write_source: WriteSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_source(tmp_path / "a.h5ad", random_counts(11, 400, seed=1), GENES, age=range(11))
    options = pipeline._options(vocabulary, None, None, "counts", None, 1, 0)
    (look,) = plan.look_at_sources([path], ["a"], 0, options, None)
    (tmp_path / "parts").mkdir()
    task = spill.PartTask(look, options, look.schema, 0, 1, 11, tmp_path, tmp_path / "parts")
    monkeypatch.setattr(spill, "BLOCK_CELLS", 2)
    monkeypatch.setattr(spill, "OBS_CELLS", 4)
    list(spill.spill_part(task))
    obs = runs.read_slice(task.runs()[0], 0, 2**64).cells["obs"].to_pylist()
    assert sorted((cell["source_row"], cell["age"]) for cell in obs) == [(row, row) for row in range(1, 11)]


def test_slices_keep_no_run_open(tmp_path: Path) -> None:
    cells = CellBatch(np.arange(4), np.arange(3, dtype=np.int32), np.ones(3, np.float32), np.arange(3))
    writer = runs.RunWriter(tmp_path, "counts")
    obs = pa.array([{"name": name} for name in "abc"])
    writer.add(cells, np.arange(3), pa.table({"shuffle_key": np.array([7, 5, 6], np.uint64), "obs": obs}))
    writer.flush()
    slices = [runs.read_slice(tmp_path / "0000", low, low + 2) for low in (0, 5)]
    assert [piece.cells["obs"].to_pylist() for piece in slices] == [[], [{"name": "b"}, {"name": "c"}]]
    deadline = time.monotonic() + 30
    # Arrow's own threads let go of what they read a moment after it was handed over, and tell nobody when.
    while str(tmp_path) in Path("/proc/self/maps").read_text():
        assert time.monotonic() < deadline, "a run is still mapped"
        time.sleep(0.01)


@pytest.mark.usefixtures("ray_local")
def test_cells_with_many_genes_make_smaller_shards(
    tmp_path: Path, vocabulary: str, write_source: WriteSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = random_counts(60, 400, seed=4)
    monkeypatch.setattr(shards, "ENTRIES_PER_SHARD", counts.nnz // 3)
    path = write_source(tmp_path / "a.h5ad", counts, GENES)
    manifest = ingest([path], tmp_path / "store", vocab=vocabulary, min_genes=1)
    assert (manifest["shards"], manifest["cells"]) == (4, 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1.5}, "seed is 1.5: give a whole number"),
        ({"values": "int"}, "values is 'int': give counts or float32"),
        ({"profile": "small"}, "profile is 'small': give compact or fast"),
        ({"cells_per_shard": 0}, "cells_per_shard is 0"),
        ({"aliases": "missing.txt"}, r"missing\.txt"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    tmp_path: Path, vocabulary: str, write_source: WriteSource, options: dict[str, Any], message: str
) -> None:
    good = write_source(tmp_path / "good.h5ad", random_counts(5, 400, seed=1), GENES)
    with pytest.raises(DataError, match=message):
        ingest([good], tmp_path / "store", vocab=vocabulary, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genes.tsv", "good.h5ad"]


def test_wrong_sources_are_refused_before_any_work(
    tmp_path: Path, vocabulary: str, write_source: WriteSource
) -> None:
    good = write_source(tmp_path / "good.h5ad", random_counts(5, 400, seed=1), GENES)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("text")
    missing = [str(tmp_path / f"missing{number}.h5ad") for number in range(7)]
    for sources, store, message in [
        ([], tmp_path / "store", "no source was given"),
        ([good, good], tmp_path / "store", "given twice"),
        ([good, f"{tmp_path}/thesis/../good.h5ad"], tmp_path / "store", "given twice"),
        ([good, missing[0]], tmp_path / "store", r"missing0\.h5ad: no such file"),
        (
            [good, *missing],
            tmp_path / "store",
            r"^5 sources cannot be used: .*missing0\.h5ad.*missing4\.h5ad",
        ),
        ([good], foreign, "is not a CellFoundry store"),
    ]:
        with pytest.raises(DataError, match=message):
            ingest(sources, store, vocab=vocabulary)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["genes.tsv", "good.h5ad", "thesis"]


@pytest.mark.usefixtures("ray_local")
def test_a_worker_that_dies_again_and_again_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(item: int) -> Iterator[int]:
        if item == 1:
            os._exit(1)
        yield item

    monkeypatch.setattr(jobs, "WORKER_RETRIES", 1)
    with (
        jobs.silent_ray_data(),
        pytest.raises(DataError, match=r"^a Ray worker died .*run the same command again"),
    ):
        list(jobs.run_items(dies, [0, 1]))


STARTS_RAY = """
from cellfoundry_data.ray_cluster import ray_cluster
from cellfoundry_data.errors import DataError

try:
    with ray_cluster():
        pass
except DataError as error:
    print(error)
"""


def test_a_ray_cluster_that_cannot_start_is_one_sentence(tmp_path: Path) -> None:
    too_long = tmp_path / ("folder" * 20)
    done = subprocess.run(
        [sys.executable, "-c", STARTS_RAY],
        env={**os.environ, "RAY_TMPDIR": str(too_long)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith("a local Ray cluster did not start (")
    assert done.stdout.count("\n") == 1
