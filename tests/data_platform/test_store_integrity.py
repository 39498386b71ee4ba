"""Damage to a store is always noticed, and the shard at fault named."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cellfoundry_data.errors import DataError
from cellfoundry_data.store import codec, open_store, verify
from cellfoundry_data.store.format import INDEX_SCHEMA, FileEntry
from cellfoundry_data.store.manifest import write as write_manifest
from cellfoundry_data.store.reader import read_frame

from .conftest import MakeStore, normalised, random_cells

N_CELLS = 120
MISSING = "(missing)"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore) -> Path:
    return make_store(tmp_path_factory.mktemp("integrity") / "store", random_cells(N_CELLS, seed=3))


@pytest.fixture(scope="module")
def pristine_fast(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore) -> Path:
    cells = normalised(random_cells(N_CELLS, seed=4))
    folder = tmp_path_factory.mktemp("integrity_fast")
    return make_store(folder / "store", cells, values="float32", profile="fast")


@pytest.fixture
def store(tmp_path: Path, pristine: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "store")


def read_everything(store: Path) -> None:
    opened = open_store(store)
    opened.read_cells(np.arange(opened.n_cells))
    for shard in range(len(opened.first_rows) - 1):
        opened.cell_keys(shard)
    assert opened.obs.num_rows == opened.n_cells
    assert len(opened.vocabulary) == opened.n_genes


def shard_of(path: Path) -> str | None:
    found = re.search(r"/(0000\d)[/.]", path.as_posix())
    return found[1] if found else None


def assert_noticed(store: Path, path: Path) -> None:
    """Damage to ``path`` is found by verify, and by reading the store where reading uses the file."""
    shard = shard_of(path)
    if shard:
        assert verify(store).bad_shards == (shard,)
    else:
        try:
            assert verify(store).bad
        except DataError:
            assert path.name == "manifest.json" or path.parent.name == "index"
    if path.name != "zarr.json":  # which plain Zarr readers use
        with pytest.raises(DataError) as error:
            read_everything(store)
        if shard:
            assert f"shard {shard}" in str(error.value)


@pytest.mark.parametrize(("kind", "flips"), [("pristine", 700), ("pristine_fast", 300)])
def test_each_flipped_byte_is_noticed_and_its_shard_named(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, flips: int
) -> None:
    store = shutil.copytree(request.getfixturevalue(kind), tmp_path / "store")
    rng = np.random.default_rng(0)
    files = sorted(path for path in store.rglob("*") if path.is_file())
    used = [path for path in files if path.name != "zarr.json"]
    sizes = np.array([path.stat().st_size for path in used])
    at_random = rng.choice(len(used), flips - len(files), p=sizes / sizes.sum())
    for path in [*files, *(used[number] for number in at_random)]:
        content = path.read_bytes()
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        assert_noticed(store, path)
        path.write_bytes(content)
    read_everything(store)
    assert not verify(store).bad


def test_truncations_are_noticed_on_open_and_the_shard_named(store: Path) -> None:
    rng = np.random.default_rng(1)
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for keep in (0, len(content) - 1, int(rng.integers(len(content)))):
            path.write_bytes(content[:keep])
            with pytest.raises(DataError, match=shard_of(path) or "damaged|not a CellFoundry"):
                open_store(store)
        path.unlink()
        with pytest.raises(DataError):
            open_store(store)
        path.write_bytes(content)
    read_everything(store)


def test_a_store_of_many_files_notices_a_truncation_when_it_reads(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellfoundry_data.store.reader.SIZES_ON_OPEN", 10)
    arrays = sorted((store / "shards/00001").rglob("c/0/0"))
    for path in (*arrays, store / "obs/00001.parquet"):
        content = path.read_bytes()
        for kept in (content[:-1], b"", None):
            if kept is None:
                path.unlink()
            else:
                path.write_bytes(kept)
            open_store(store)
            with pytest.raises(DataError, match="shard 00001"):
                read_everything(store)
        path.write_bytes(content)
    read_everything(store)


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_index_parsed_in_parts_is_the_same(
    store: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    whole = read_frame(store).index
    monkeypatch.setattr("cellfoundry_data.store.index.SHARDS_AT_ONCE", at_once)
    index = read_frame(store).index
    assert len(index.names) > at_once
    for shard in range(len(index.names)):
        one, other = index.entry(shard), whole.entry(shard)
        assert (one.name, one.chunks, one.files) == (other.name, other.chunks, other.files)
        np.testing.assert_array_equal(one.chunk_cells, other.chunk_cells)
        np.testing.assert_array_equal(one.chunk_nnz_used, other.chunk_nnz_used)
    np.testing.assert_array_equal(index.first_rows, whole.first_rows)


def test_verify_names_every_bad_shard(store: Path) -> None:
    assert not verify(store).bad
    (store / "shards/00000/row_nnz/c/0/0").unlink()
    with (store / "obs/00002.parquet").open("ab") as file:
        file.write(b"x")
    report = verify(store)
    assert report.bad_shards == ("00000", "00002")
    assert "row_nnz" in report.bad[0]
    assert report.files > 40


def test_files_that_the_manifest_does_not_list_are_ignored(store: Path) -> None:
    (store / "shards/00009").mkdir()
    (store / "shards/00009/zarr.json").write_text("half a shard")
    (store / "index/000001.parquet").write_text("of an append that was killed")
    read_everything(store)
    assert not verify(store).bad


def test_another_format_version_is_refused_with_the_remedy(store: Path) -> None:
    (store / "manifest.json").write_text(
        '{"format": "cellfoundry-store", "version": 1, "cells": 5, "shards": []}'
    )
    for use in (open_store, verify):
        with pytest.raises(DataError, match=r"format version 1 .* ingest its sources again"):
            use(store)


def forged(store: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> None:
    """Give the store another index, or its first shard other numbers there, and checksums and totals that agree."""
    path = store / "index/000000.parquet"
    given, rows = rows, rows or pq.read_table(path).to_pylist()
    rows[0].update(changes)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), path)
    manifest = json.loads((store / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["path"] == "index/000000.parquet":
            file.update(asdict(FileEntry.of(store, path)))
    if given:
        sums = {name: sum(row[name] for row in rows) for name in ("cells", "nnz")}
        manifest |= sums | {"shards": len(rows)}
    write_manifest(store, manifest)


@pytest.mark.parametrize(
    "changes",
    [
        {"cells": 10**18},
        {"nnz": -1},
        {"chunks": 2**40},
        {"chunk_nnz": 10**18},
        {"chunk_nnz": 0},
        {"chunk_nnz": 1},
        {"gene_delta_escapes": 10**18},
        {"count_escapes": -5},
        {"chunk_cells": [2**32 - 1]},
        {"chunk_cells": []},
        {"chunk_cells": None},
        {"chunk_nnz_used": [2**32 - 1, 0]},
        {"name": "../../etc"},
        {"name": None},
        {"name": "00001"},
        {"files": []},
        {"files": [{"path": "/etc/passwd", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "shards/00000/../../x", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "shards/00000/", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "obs/00000.parquet", "size": 1, "sha256": "x" * 64}]},
        {"files": None},
    ],
)
def test_an_index_that_lies_is_refused_before_anything_is_allocated(
    store: Path, changes: dict[str, Any]
) -> None:
    forged(store, **changes)
    with pytest.raises(DataError):
        read_everything(store)


MANIFESTS_THAT_LIE: list[dict[str, Any]] = [
    *({name: MISSING} for name in ("cells", "genes", "nnz", "shards", "array_bytes", "values", "profile")),
    *({name: MISSING} for name in ("seed", "qc", "vocabulary", "sources", "files")),
    {"cells": -1},
    {"cells": True},
    {"cells": 120.0},
    {"genes": 5},
    {"genes": 0},
    {"genes": 10**12},
    {"genes": 2**31 - 1},
    {"seed": "0"},
    {"values": "bogus"},
    {"values": ["counts"]},
    {"profile": "bogus"},
    {"qc": []},
    {"sources": "x"},
    {"sources": [1]},
    {"vocabulary": "vocab.tsv"},
    {"vocabulary": {"file": "../vocab.tsv", "hash": "0" * 64}},
    {"vocabulary": {"file": "vocab.tsv", "hash": 5}},
    {"vocabulary": {"file": "vocab.tsv", "hash": "0" * 64}},
    {"files": "x"},
    {"files": [5]},
    {"files": []},
]

FILES_THAT_LIE: list[dict[str, Any]] = [
    {"path": "index/../../../evil/"},
    {"path": "/etc/passwd"},
    {"path": "index/000000.parquet\n"},
    {"path": "qc/../../x.parquet"},
    {"path": "zarr.json"},  # a second time
    {"path": 5},
    {"path": None},
    {"size": -1},
    {"size": 2**60},
    {"size": 10**30},
    {"size": "7"},
    {"sha256": "../../x"},
    {"sha256": None},
    {"more": 1},
]


@pytest.mark.parametrize("changes", MANIFESTS_THAT_LIE, ids=str)
def test_a_manifest_that_lies_is_refused(store: Path, changes: dict[str, Any]) -> None:
    manifest = json.loads((store / "manifest.json").read_text()) | changes
    write_manifest(store, {name: value for name, value in manifest.items() if value != MISSING})
    with pytest.raises(DataError, match="damaged"):
        read_everything(store)


@pytest.mark.parametrize("changes", FILES_THAT_LIE, ids=str)
def test_a_list_of_files_that_lies_is_refused_before_any_is_opened(
    store: Path, changes: dict[str, Any]
) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["path"] == "index/000000.parquet":
            file.update(changes)
    write_manifest(store, manifest)
    for use in (open_store, verify):
        with pytest.raises(DataError, match="damaged"):
            use(store)


def test_a_second_checksum_in_the_manifest_counts_for_nothing(store: Path, tmp_path: Path) -> None:
    _, _, rest = (store / "manifest.json").read_bytes().partition(b"\n")
    rest = rest.rstrip()[:-1] + b', "sha256": "' + str(tmp_path / "outside").encode() + b'"}'
    digest = hashlib.sha256(rest).hexdigest()
    (store / "manifest.json").write_bytes(b'{"sha256": "%s",\n' % digest.encode() + rest)
    assert open_store(store).manifest["sha256"] == digest


@pytest.mark.parametrize("row_nnz", [2**32 - 1, 1, 0])
def test_rows_that_have_not_the_entries_of_the_index_are_refused_before_anything_is_allocated(
    tmp_path: Path, pristine_fast: Path, row_nnz: int
) -> None:
    store = shutil.copytree(pristine_fast, tmp_path / "store")
    path = store / "shards/00000/row_nnz/c/0/0"
    content = bytearray(path.read_bytes())
    width = 4 * max(pq.read_table(store / "index/000000.parquet")["chunk_cells"][0].as_py())
    content[: width + 4] = codec.seal(np.full(width // 4, row_nnz, "<u4").tobytes())
    path.write_bytes(content)
    opened = open_store(store)
    for use in (opened.read_cells, opened.chunk_row_nnz):
        with pytest.raises(DataError, match=r"shard 00000 .* is damaged"):
            use([0])


def test_an_index_of_many_chunks_and_no_lists_is_refused_before_anything_is_allocated(store: Path) -> None:
    path = store / "index/000000.parquet"
    row = pq.read_table(path).to_pylist()[1]
    hollow = {"chunks": 2**31, "chunk_cells": [], "chunk_nnz_used": [], "files": [], "cells": 0, "nnz": 0}
    full = row | {"name": "full", "chunk_cells": [1] * 100_000, "chunk_nnz_used": [1] * 100_000}
    forged(store, rows=[full] + [row | hollow | {"name": f"x{number}"} for number in range(100_000)])
    with pytest.raises(DataError, match="damaged"):
        open_store(store)


def test_a_chunk_that_claims_to_be_larger_is_refused(store: Path) -> None:
    path = store / "shards/00000/row_nnz/c/0/0"
    entry = pq.read_table(store / "index/000000.parquet").to_pylist()[0]
    bomb = zstandard.ZstdCompressor().compress(bytes(2**26))
    sealed = codec.seal(bomb)
    starts = np.arange(entry["chunks"]) * len(sealed)
    index = np.stack([starts, np.full(len(starts), len(sealed))], axis=1).astype("<u8")
    path.write_bytes(sealed * len(starts) + codec.seal(index.tobytes()))
    files = [file for file in entry["files"] if file["path"] != "shards/00000/row_nnz/c/0/0"]
    forged(store, files=[*files, asdict(FileEntry.of(store, path))])
    with pytest.raises(DataError, match=r"shard 00000 .* does not decompress to"):
        open_store(store).read_cells([0])
