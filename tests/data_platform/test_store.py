"""The shard store: nothing changes on the way in and out, and damage is always noticed."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.store import open_store, verify
from cellfoundry_data.store.cell_keys import buckets, cell_keys, in_validation, shuffle_keys
from cellfoundry_data.store.format import Profile, Values
from cellfoundry_data.store.replace import replacing_store
from cellfoundry_data.store.writer import finish_store, start_store, write_shard
from cellfoundry_data.vocabulary import Vocabulary

from .conftest import MakeStore, normalised, random_cells

N_CELLS = 300
VALUES: tuple[Values, ...] = ("counts", "float32")
PROFILES: tuple[Profile, ...] = ("compact", "fast")


@pytest.fixture(scope="module")
def cells() -> CellBatch:
    return random_cells(N_CELLS, seed=3)


@pytest.fixture
def store(tmp_path: Path, make_store: MakeStore, cells: CellBatch) -> Path:
    return make_store(tmp_path / "store", cells)


def assert_same_cells(actual: CellBatch, expected: CellBatch) -> None:
    np.testing.assert_array_equal(actual.indptr, expected.indptr)
    np.testing.assert_array_equal(actual.gene_ids, expected.gene_ids)
    np.testing.assert_array_equal(actual.counts, expected.counts)


def test_gene_names_with_odd_line_separators_come_back(tmp_path: Path) -> None:
    odd = tuple(f"G{separator}{number}" for number, separator in enumerate("\u2028\u2029\x0b\x0c\x1c\x85"))
    vocabulary = Vocabulary((*odd, "last "))
    with replacing_store(tmp_path / "store") as folder:
        start_store(folder, vocabulary)
        finish_store(folder, vocabulary, [], seed=0, qc={}, sources=[])
    assert open_store(tmp_path / "store").vocabulary == vocabulary


def test_any_rows_come_back_in_the_order_asked_for(store: Path, cells: CellBatch) -> None:
    opened = open_store(store)
    assert_same_cells(opened.read_cells(np.arange(N_CELLS)), cells)
    wanted = np.array([299, 0, 150, 150, 7])
    read = opened.read_cells(wanted)
    assert_same_cells(read, cells.select(wanted))
    np.testing.assert_array_equal(read.row_ids, wanted)
    assert len(opened.read_cells([])) == 0
    with pytest.raises(DataError, match="rows of the store"):
        opened.read_cells([N_CELLS])
    for rows in (np.ones(N_CELLS, bool), np.array([1.7]), np.array(["1"]), np.array([None])):
        with pytest.raises(DataError, match=r"by integers, not .* numpy\.flatnonzero"):
            opened.read_cells(rows)
    assert_same_cells(opened.read_cells(np.array([3], np.uint8)), cells.select(np.array([3])))


def test_obs_and_vocabulary_come_back(store: Path) -> None:
    opened = open_store(store)
    assert opened.obs["tissue"].to_pylist()[:4] == ["pancreas", "blood", None, "pancreas"]
    assert opened.obs["cell_name"][299].as_py() == "cell299"
    assert pa.types.is_dictionary(opened.obs.schema.field("tissue").type)
    assert opened.vocabulary.genes[2999] == "GENE2999"
    assert (opened.n_cells, opened.n_genes) == (N_CELLS, 3000)
    assert_same_cells(pickle.loads(pickle.dumps(opened)).read_cells([5]), opened.read_cells([5]))


def decode_by_the_document(shard: Any, chunk_cells: list[int]) -> Iterator[tuple[list[int], list[float]]]:
    """Genes and measurements of each cell, by docs/store-format.md and plain zarr-python alone."""
    measured = "count" if "count" in shard else "value"
    for chunk, cells in enumerate(chunk_cells):
        streams = {name: iter(array[chunk].tolist()) for name, array in shard.arrays()}
        for _ in range(cells):
            nnz = next(streams["row_nnz"])
            deltas = [next(streams["gene_delta"]) for _ in range(nnz)]
            deltas = [next(streams["gene_delta_escape"]) if delta == 255 else delta for delta in deltas]
            values = [next(streams[measured]) for _ in range(nnz)]
            if measured == "count":
                values = [next(streams["count_escape"]) if value == 255 else value for value in values]
            yield list(accumulate(deltas)), values


kinds = pytest.mark.parametrize(
    ("values", "profile"), [(values, profile) for values in VALUES for profile in PROFILES]
)


def of_kind(cells: CellBatch, values: Values) -> CellBatch:
    return cells if values == "counts" else normalised(cells)


@kinds
def test_plain_zarr_python_reads_a_store(
    tmp_path: Path, make_store: MakeStore, values: Values, profile: Profile
) -> None:
    cells = of_kind(random_cells(60, seed=3), values)
    store = make_store(tmp_path / "store", cells, values=values, profile=profile)
    root = zarr.open_group(store, mode="r")
    index = pq.read_table(store / "index/000000.parquet").to_pylist()
    read = [
        cell
        for shard in index
        for cell in decode_by_the_document(root[f"shards/{shard['name']}"], shard["chunk_cells"])
    ]
    np.testing.assert_array_equal(np.concatenate([genes for genes, _ in read]), cells.gene_ids)
    np.testing.assert_array_equal(np.concatenate([measured for _, measured in read]), cells.counts)
    np.testing.assert_array_equal([len(genes) for genes, _ in read], np.diff(cells.indptr))


@kinds
def test_every_kind_of_store_comes_back_bit_for_bit(
    tmp_path: Path, make_store: MakeStore, cells: CellBatch, values: Values, profile: Profile
) -> None:
    cells = of_kind(cells, values)
    store = make_store(tmp_path / "store", cells, values=values, profile=profile)
    opened = open_store(store)
    assert (opened.values, opened.manifest["profile"]) == (values, profile)
    assert_same_cells(opened.read_cells(np.arange(N_CELLS)), cells)
    assert opened.read_cells([5]).counts.tobytes() == cells.select(np.array([5])).counts.tobytes()
    assert not verify(store).bad


@kinds
def test_the_same_cells_give_the_same_bytes(
    tmp_path: Path, make_store: MakeStore, cells: CellBatch, values: Values, profile: Profile
) -> None:
    cells = of_kind(cells, values)
    one, two = (
        make_store(tmp_path / name, cells, values=values, profile=profile) / "manifest.json" for name in "ab"
    )
    assert one.read_bytes() == two.read_bytes()


def test_chunks_are_decoded_into_the_places_given(store: Path, cells: CellBatch) -> None:
    opened = open_store(store)
    chunks = np.array([7, 0, opened.n_chunks - 1])
    rows = np.concatenate([np.arange(*opened.chunk_first_row[chunk : chunk + 2]) for chunk in chunks])
    lengths = opened.chunk_row_nnz(chunks)
    np.testing.assert_array_equal(lengths, np.diff(cells.indptr)[rows])
    np.testing.assert_array_equal(opened.chunk_cell_keys(chunks), cell_keys(0, rows))
    np.testing.assert_array_equal(
        opened.chunk_nnz[chunks], np.add.reduceat(np.diff(cells.indptr), opened.chunk_first_row[:-1])[chunks]
    )
    np.testing.assert_array_equal(opened.chunks_of(rows), np.repeat(chunks, opened.chunk_cells(chunks)))
    # Every second row, with a gap behind each.
    room = lengths.astype(np.int64) + 3
    destination = np.cumsum(room) - room
    destination[::2] = -1
    genes = np.full(room.sum(), -1, np.int32)
    counts = np.full(len(genes), -1, np.float32)
    opened.decode_chunks(chunks, lengths, destination, genes, counts)
    expected = np.full(len(genes), -1, np.int32)
    for row, start in zip(rows[1::2], destination[1::2], strict=True):
        cell = cells.select(np.array([row]))
        expected[start : start + cell.nnz] = cell.gene_ids
        np.testing.assert_array_equal(counts[start : start + cell.nnz], cell.counts)
    np.testing.assert_array_equal(genes, expected)
    with pytest.raises(ValueError, match="destinations"):
        opened.decode_chunks(chunks, lengths, destination[1:], genes, counts)
    with pytest.raises(ValueError, match="room"):
        opened.decode_chunks(chunks, lengths, np.full(len(rows), len(genes) - 1), genes, counts)


def test_a_cell_larger_than_a_chunk_is_stored(tmp_path: Path, make_store: MakeStore) -> None:
    cells = random_cells(12, seed=1, mean_nnz=900)
    store = make_store(tmp_path / "store", cells, shards=2, chunk_nnz=100)
    assert_same_cells(open_store(store).read_cells(np.arange(12)), cells)


def test_cells_without_genes_are_stored(tmp_path: Path, make_store: MakeStore) -> None:
    cells = random_cells(20, mean_nnz=1)
    assert (np.diff(cells.indptr) == 0).any()
    store = make_store(tmp_path / "store", cells, shards=2)
    assert_same_cells(open_store(store).read_cells(np.arange(20)), cells)


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a CellFoundry store"):
        open_store(tmp_path)
    with pytest.raises(DataError, match="not a CellFoundry store"):
        open_store(tmp_path / "missing")


def test_an_interrupted_writer_leaves_the_old_store(
    tmp_path: Path, store: Path, make_store: MakeStore, cells: CellBatch
) -> None:
    def interrupted_writer() -> None:
        with replacing_store(store) as folder:
            start_store(folder, Vocabulary(("A",)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_writer()
    assert not verify(store).bad
    assert [path.name for path in tmp_path.iterdir()] == ["store"]

    left_behind = tmp_path / ".store.partial"
    (left_behind / "shards").mkdir(parents=True)
    (left_behind / "manifest.json").write_text("half")
    make_store(store, cells.select(np.arange(50)))
    assert open_store(store).n_cells == 50
    assert not verify(store).bad
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_reader_keeps_the_old_store_while_it_is_replaced(
    store: Path, make_store: MakeStore, cells: CellBatch
) -> None:
    opened = open_store(store)
    first = opened.read_cells([0])
    make_store(store, cells.select(np.arange(50, 100)), shards=1)
    assert_same_cells(opened.read_cells([0]), first)


def test_two_writers_of_one_store_are_refused(store: Path) -> None:
    def second_writer() -> None:
        with replacing_store(store):
            pytest.fail("two writers at once")

    with replacing_store(store) as folder:
        with pytest.raises(DataError, match="another process is writing"):
            second_writer()
        assert folder.is_dir()
        start_store(folder, Vocabulary(("A",)))
        finish_store(folder, Vocabulary(("A",)), [], seed=0, qc={}, sources=[])
    assert open_store(store).n_cells == 0


def test_readers_in_other_threads_and_forked_processes(store: Path, cells: CellBatch) -> None:
    opened = open_store(store)
    rows = np.random.default_rng(0).permutation(N_CELLS)

    def read(_: int) -> bytes:
        return opened.read_cells(rows).gene_ids.tobytes()

    expected = cells.select(rows).gene_ids.tobytes()
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(read, range(40))) == {expected}
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert processes.map(opened.read_cells, [rows])[0].gene_ids.tobytes() == expected


def test_shards_are_appended_under_a_new_manifest(store: Path, cells: CellBatch) -> None:
    opened = open_store(store)
    more = random_cells(40, seed=9)
    keys = cell_keys(1, np.arange(40))
    shard = write_shard(store, "00003", more, keys, opened.obs_of(0).slice(0, 40))
    manifest = opened.manifest
    with pytest.raises(DataError, match="profile is compact and theirs is fast"):
        finish_store(
            store, opened.vocabulary, [shard], seed=0, qc={}, sources=[], profile="fast", previous=manifest
        )
    assert open_store(store).n_cells == N_CELLS
    finish_store(store, opened.vocabulary, [shard], seed=0, qc={}, sources=[{"name": "b"}], previous=manifest)
    grown = open_store(store)
    assert (grown.n_cells, grown.manifest["shards"], grown.manifest["sources"]) == (
        N_CELLS + 40,
        4,
        [{"name": "b"}],
    )
    assert_same_cells(grown.read_cells(np.arange(N_CELLS, N_CELLS + 40)), more)
    assert_same_cells(grown.read_cells(np.arange(N_CELLS)), cells)
    assert opened.n_cells == N_CELLS
    np.testing.assert_array_equal(grown.cell_keys(3), keys)
    assert not verify(store).bad


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not a CellFoundry store"), replacing_store(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("counts", "genes", "values"),
    [
        ([1.5, 1], [0, 1], "counts"),
        ([-1, 1], [0, 1], "counts"),
        ([np.nan, 1], [0, 1], "counts"),
        ([2.0**32, 1], [0, 1], "counts"),
        ([1, 1], [1, 0], "counts"),
        ([1, 1], [-1, 0], "counts"),
        ([-0.5, 1], [0, 1], "float32"),
        ([0, 1], [0, 1], "float32"),
        ([np.nan, 1], [0, 1], "float32"),
        ([np.inf, 1], [0, 1], "float32"),
        ([0.5, 1], [1, 1], "float32"),
    ],
)
def test_what_a_store_cannot_hold_is_refused(
    tmp_path: Path, counts: list[float], genes: list[int], values: Values
) -> None:
    cells = CellBatch(
        np.array([0, 2]), np.array(genes, np.int32), np.array(counts, np.float32), np.array([0])
    )
    start_store(tmp_path, Vocabulary(("A", "B")))
    obs = pa.table({"cell_name": ["a"]})
    with pytest.raises(DataError):
        write_shard(tmp_path, "00000", cells, np.zeros(1, np.uint64), obs, values=values)


def test_cell_keys_are_the_published_splitmix64_and_split_evenly() -> None:
    # First output of splitmix64 seeded with 0.
    assert cell_keys(0, np.array([0]))[0] == 0xE220A8397B1DCDAF
    keys = np.concatenate([cell_keys(source, np.arange(50_000)) for source in (0, 1)])
    assert len(np.unique(keys)) == 100_000
    assert abs(in_validation(keys, 0.05).mean() - 0.05) < 0.003
    assert not in_validation(keys, 0.0).any()
    shuffled = shuffle_keys(keys, seed=7)
    in_order = buckets(np.sort(shuffled), 10)
    assert (np.diff(in_order) >= 0).all()
    assert abs(np.bincount(in_order, minlength=10) - 10_000).max() < 500
