"""The shard store: nothing changes on the way in and out, and damage is always noticed."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.store import open_store, verify
from cellfoundry_data.store.cell_keys import buckets, cell_keys, in_validation, shuffle_keys
from cellfoundry_data.store.encoding import DECODED, GENE_OUT_OF_RANGE, TOO_FEW_ESCAPES, decode_rows, encode
from cellfoundry_data.store.format import digest_line
from cellfoundry_data.store.replace import replacing_store
from cellfoundry_data.store.writer import finish_store, start_store, write_shard
from cellfoundry_data.vocabulary import Vocabulary

from .conftest import MakeStore, random_cells

N_CELLS = 300


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


# Gaps around 255 and counts around every limit; a float32 holds each of them exactly.
gaps = st.one_of(st.integers(1, 5), st.sampled_from([254, 255, 256, 511, 5000]))
count_values = st.one_of(
    st.integers(1, 300), st.sampled_from([254, 255, 256, 65_535, 65_536, 2**24, 2**31, 2**32 - 2**8])
)
rows = st.lists(st.lists(st.tuples(gaps, count_values), max_size=30), max_size=12)


@given(rows=rows, chunk_nnz=st.integers(1, 50), first_gene=st.sampled_from([0, 254, 255, 300]))
@settings(max_examples=150, deadline=None)
def test_decoding_gives_back_what_was_encoded(
    rows: list[list[tuple[int, int]]], chunk_nnz: int, first_gene: int
) -> None:
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    genes = [np.cumsum([gap for gap, _ in row]) - (row[0][0] if row else 0) + first_gene for row in rows]
    gene_ids = np.concatenate([np.empty(0), *genes]).astype(np.int32)
    counts = np.array([count for row in rows for _, count in row], np.uint32)

    encoded = encode(indptr, gene_ids, counts, chunk_nnz)

    out_genes, out_counts = np.full(len(gene_ids), -1, np.int32), np.full(len(counts), -1, np.float32)
    for chunk, (before, after) in enumerate(
        zip(encoded.chunk_start[:-1], encoded.chunk_start[1:], strict=True)
    ):
        answer = decode_rows(
            encoded.gene_delta[chunk],
            encoded.count[chunk],
            encoded.gene_delta_escape[before[1] : after[1]],
            encoded.count_escape[before[2] : after[2]],
            encoded.row_nnz[before[0] : after[0]],
            indptr[before[0] : after[0]],
            2**31 - 1,
            out_genes,
            out_counts,
        )
        assert answer == DECODED
    np.testing.assert_array_equal(out_genes, gene_ids)
    np.testing.assert_array_equal(out_counts, counts.astype(np.float32))


@pytest.mark.parametrize(
    ("deltas", "escapes", "answer"),
    [
        ([3, 255], [], TOO_FEW_ESCAPES),
        ([3, 255], [2**32 - 1], GENE_OUT_OF_RANGE),
        ([3, 254], [], GENE_OUT_OF_RANGE),
        ([3, 96], [], DECODED),
    ],
)
def test_bytes_that_no_writer_makes_are_refused(deltas: list[int], escapes: list[int], answer: int) -> None:
    gene_ids, counts = np.zeros(2, np.int32), np.zeros(2, np.float32)
    got = decode_rows(
        np.array(deltas, np.uint8),
        np.array([1, 1], np.uint8),
        np.array(escapes, np.uint32),
        np.empty(0, np.uint32),
        np.array([2], np.uint32),
        np.zeros(1, np.int64),
        100,
        gene_ids,
        counts,
    )
    assert got == answer


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


def test_obs_and_vocabulary_come_back(store: Path) -> None:
    opened = open_store(store)
    assert opened.obs["tissue"].to_pylist()[:4] == ["pancreas", "blood", None, "pancreas"]
    assert opened.obs["cell_name"][299].as_py() == "cell299"
    assert pa.types.is_dictionary(opened.obs.schema.field("tissue").type)
    assert opened.vocabulary.genes[2999] == "GENE2999"
    assert (opened.n_cells, opened.n_genes) == (N_CELLS, 3000)
    assert_same_cells(pickle.loads(pickle.dumps(opened)).read_cells([5]), opened.read_cells([5]))


def decode_by_the_documented_rule(shard: Any) -> tuple[list[npt.NDArray[np.int64]], list[list[int]]]:
    """docs/store-format.md in a few plain lines, with nothing of the product but the file."""
    starts, row_nnz = shard["chunk_start"][:], shard["row_nnz"][:]
    gene_escapes, count_escapes = iter(shard["gene_delta_escape"][:]), iter(shard["count_escape"][:])
    genes, counts = [], []
    for chunk in range(len(starts) - 1):
        position = 0
        for row in range(starts[chunk, 0], starts[chunk + 1, 0]):
            span = slice(position, position + row_nnz[row])
            deltas = [
                int(next(gene_escapes)) if d == 255 else int(d) for d in shard["gene_delta"][chunk, span]
            ]
            counts.append(
                [int(next(count_escapes)) if c == 255 else int(c) for c in shard["count"][chunk, span]]
            )
            genes.append(np.cumsum(np.array(deltas, np.int64)))
            position += row_nnz[row]
    return genes, counts


def test_plain_zarr_python_reads_a_store(store: Path, cells: CellBatch) -> None:
    root = zarr.open_group(store, mode="r")
    genes, counts = [], []
    for entry in json.loads((store / "manifest.json").read_text())["shards"]:
        shard_genes, shard_counts = decode_by_the_documented_rule(root[f"shards/{entry['name']}"])
        genes += shard_genes
        counts += shard_counts
    np.testing.assert_array_equal(np.concatenate(genes), cells.gene_ids)
    np.testing.assert_array_equal(np.concatenate(counts), cells.counts)
    np.testing.assert_array_equal([len(row) for row in genes], np.diff(cells.indptr))


def test_a_cell_larger_than_a_chunk_is_stored(tmp_path: Path, make_store: MakeStore) -> None:
    cells = random_cells(12, seed=1, mean_nnz=900)
    store = make_store(tmp_path / "store", cells, shards=2, chunk_nnz=100)
    assert_same_cells(open_store(store).read_cells(np.arange(12)), cells)


def test_cells_without_genes_are_stored(tmp_path: Path, make_store: MakeStore) -> None:
    cells = random_cells(20, mean_nnz=1)
    assert (np.diff(cells.indptr) == 0).any()
    store = make_store(tmp_path / "store", cells, shards=2)
    assert_same_cells(open_store(store).read_cells(np.arange(20)), cells)


def read_everything(store: Path) -> None:
    opened = open_store(store)
    opened.read_cells(np.arange(opened.n_cells))
    assert opened.obs.num_rows == opened.n_cells
    assert len(opened.vocabulary) == opened.n_genes


def test_every_flipped_byte_is_noticed_and_its_shard_named(store: Path) -> None:
    rng = np.random.default_rng(0)
    files = sorted(path for path in store.rglob("*") if path.is_file())
    for path in files:
        content = path.read_bytes()
        positions = {0, len(content) - 1, *rng.integers(0, len(content), 4).tolist()}
        for position in positions:
            changed = bytearray(content)
            changed[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            with pytest.raises(DataError) as error:
                read_everything(store)
            part = re.search(r"/(0000\d)[/.]", path.as_posix())
            if part:
                assert f"shard {part[1]}" in str(error.value)
                report = verify(store)
                assert report.bad_shards == (part[1],)
        path.write_bytes(content)
    read_everything(store)


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_a_truncated_shard_is_refused_on_open(store: Path, keep: float) -> None:
    path = store / "shards/00001/count/c/0/0"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)] if keep == 0.5 else content[: int(keep)])
    with pytest.raises(DataError, match=r"shard 00001 .* is damaged .*bytes where .* were written"):
        open_store(store)
    assert verify(store).bad_shards == ("00001",)


def test_verify_names_every_bad_shard(store: Path) -> None:
    assert not verify(store).bad
    (store / "shards/00000/row_nnz/c/0").unlink()
    with (store / "obs/00002.parquet").open("ab") as file:
        file.write(b"x")
    report = verify(store)
    assert report.bad_shards == ("00000", "00002")
    assert "row_nnz" in report.bad[0]
    assert report.files > 40


def test_another_format_version_is_refused_with_the_remedy(store: Path) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["version"] = 99
    content = json.dumps(manifest).encode()
    (store / "manifest.json").write_bytes(content)
    (store / "manifest.json.sha256").write_bytes(digest_line(content))
    with pytest.raises(DataError, match=r"format version 99 .* ingest its sources again"):
        open_store(store)


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


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not a CellFoundry store"), replacing_store(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("counts", "genes"),
    [([1.5, 1], [0, 1]), ([-1, 1], [0, 1]), ([np.nan, 1], [0, 1]), ([2.0**32, 1], [0, 1]), ([1, 1], [1, 0])],
)
def test_what_bytes_cannot_hold_is_refused(tmp_path: Path, counts: list[float], genes: list[int]) -> None:
    cells = CellBatch(
        np.array([0, 2]), np.array(genes, np.int32), np.array(counts, np.float32), np.array([0])
    )
    start_store(tmp_path, Vocabulary(("A", "B")))
    with pytest.raises(DataError):
        write_shard(tmp_path, "00000", cells, np.zeros(1, np.uint64), pa.table({"cell_name": ["a"]}))


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
