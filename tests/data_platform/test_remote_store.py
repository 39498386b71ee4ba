"""A store behind a URL: the same cells, few requests, a cache that is never trusted, errors that say where."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
from aiohttp import web

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.store import open_store, verify
from cellfoundry_data.store.cache import RangeCache
from cellfoundry_data.store.files import ByteRange

from .conftest import MakeStore, random_cells

N_CELLS = 200


@pytest.fixture(scope="module")
def cells() -> CellBatch:
    return random_cells(N_CELLS, seed=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore, cells: CellBatch) -> Path:
    return make_store(tmp_path_factory.mktemp("remote") / "store", cells)


class Server:
    """A folder over HTTP on the loopback interface, with ranges; remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.sent = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if "list-type" in request.query:
            return web.Response(text="<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        path = self.folder / request.path.removeprefix("/store/")
        if request.method == "GET":
            self.requests.append(request.path)
            size = path.stat().st_size if path.is_file() else 0
            self.sent += len(range(size)[request.http_range])
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/store"
        return runner

    def _serve(self) -> None:
        runner = self._loop.run_until_complete(self._start())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Path) -> Iterator[Server]:
    """A copy of the store in an object store, which obstore takes to be S3."""
    pytest.importorskip("obstore")
    folder = shutil.copytree(store, tmp_path / "bucket")
    with serving(folder) as server:
        settings = {
            "ENDPOINT_URL": server.url.removesuffix("/store"),
            "ALLOW_HTTP": "true",
            "SKIP_SIGNATURE": "true",
            "REGION": "us-east-1",
            "VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        }
        for name, value in settings.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        server.url = "s3://store"
        yield server


@contextmanager
def in_memory(folder: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/store", recursive=True)
    try:
        yield "memory://bucket/store"
    finally:
        memory.rm("/bucket", recursive=True)


def assert_serves(url: str, cells: CellBatch, cache: Path | None = None) -> None:
    opened = open_store(url, cache=cache)
    rows = np.array([199, 3, 3, 77, *range(50)])
    for store in (opened, pickle.loads(pickle.dumps(opened))):
        read = store.read_cells(rows)
        expected = cells.select(rows)
        np.testing.assert_array_equal(read.gene_ids, expected.gene_ids)
        np.testing.assert_array_equal(read.counts, expected.counts)
    assert opened.obs["cell_name"][77].as_py() == "cell77"
    assert len(opened.vocabulary) == opened.n_genes


def test_memory_urls(store: Path, cells: CellBatch, tmp_path: Path) -> None:
    with in_memory(store) as url:
        assert_serves(url, cells)
        assert_serves(url, cells, tmp_path)
        assert not verify(url).bad
        fsspec.filesystem("memory").pipe("/bucket/store/shards/00001/count/c/0/0", b"short")
        assert verify(url).bad_shards == ("00001",)
        with pytest.raises(DataError, match=r"shard 00001 of the store memory://bucket/store"):
            open_store(url).read_cells(np.arange(N_CELLS))


def test_http_urls_and_their_cache(store: Path, cells: CellBatch, tmp_path: Path) -> None:
    with serving(store) as server:
        assert_serves(server.url, cells)
        assert_serves(server.url, cells, tmp_path)
        server.requests.clear()
        assert_serves(server.url, cells, tmp_path)
        assert set(server.requests) == {"/store/manifest.json"}

        # Copies that are damaged or cut short are fetched again, and are whole afterwards.
        copies = [path for path in tmp_path.rglob("*-*") if path.is_file()]
        for number, path in enumerate(copies):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content if number % 2 else content[:-1])
        assert_serves(server.url, cells, tmp_path)
        server.requests.clear()
        assert_serves(server.url, cells, tmp_path)
        assert set(server.requests) == {"/store/manifest.json"}


def test_a_cache_keeps_to_the_bytes_that_it_may_take(store: Path, cells: CellBatch, tmp_path: Path) -> None:
    with serving(store) as server:
        small = pickle.loads(pickle.dumps(open_store(server.url, cache=tmp_path, cache_bytes=40_000)))
        for row in range(0, len(cells), 7):
            small.read_cells([row])
    # Files take whole blocks, and the oldest go when the limit is reached.
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*-*") if path.is_file()) <= 50_000


def test_a_forked_process_leaves_the_connections_of_its_parent_alone(store: Path, cells: CellBatch) -> None:
    def read_in_child() -> None:
        opened.read_cells([0])
        gc.collect()  # frees what the child does not keep of its parent's

    with serving(store) as server:
        opened = open_store(server.url)
        opened.read_cells([0])
        child = multiprocessing.get_context("fork").Process(target=read_in_child)
        child.start()
        child.join()
        assert child.exitcode == 0
        read: list[CellBatch] = []
        again = threading.Thread(target=lambda: read.append(opened.read_cells([N_CELLS - 1])), daemon=True)
        again.start()
        again.join(20)
        assert read, "the parent waits for an answer that it is not told of"
    np.testing.assert_array_equal(read[0].counts, cells.select([N_CELLS - 1]).counts)


def test_object_stores(object_store: Server, cells: CellBatch, tmp_path: Path) -> None:
    assert_serves(object_store.url, cells)
    assert_serves(object_store.url, cells, tmp_path / "cache")
    assert not verify(object_store.url).bad
    with pytest.raises(DataError, match="not a CellFoundry store"):
        open_store(f"{object_store.url}/nothing")


def test_object_stores_send_only_what_is_asked_for(object_store: Server) -> None:
    opened = open_store(object_store.url)
    opened.read_cells(np.arange(N_CELLS))
    shards = len(opened.first_rows) - 1
    object_store.requests.clear()
    opened.chunk_cell_keys(np.arange(opened.n_chunks))
    assert len(object_store.requests) == 2 * shards  # the shard index, and all chunks as one range
    object_store.requests.clear()
    object_store.sent = 0
    chunks = np.arange(0, opened.n_chunks, 2)
    opened.chunk_cell_keys(chunks)
    assert len(object_store.requests) == len(chunks)
    assert object_store.sent < 8 * N_CELLS


@pytest.mark.parametrize("keep", [None, 0, 20, -30])
def test_a_file_lost_or_cut_short_behind_a_url_is_damage_of_its_shard(
    object_store: Server, keep: int | None
) -> None:
    before = open_store(object_store.url)
    before.read_cells(np.arange(N_CELLS))
    path = object_store.folder / "shards/00002/count/c/0/0"
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[:keep])
    readers = [open_store(object_store.url)]
    if keep != -30:  # which takes nothing that the reader from before still needs
        readers.append(before)
    for opened in readers:
        with pytest.raises(DataError, match=r"shard 00002 .* is damaged"):
            opened.read_cells(np.arange(N_CELLS))
    assert verify(object_store.url).bad_shards == ("00002",)
    path.write_bytes(content)
    (object_store.folder / "obs/00001.parquet").unlink()
    with pytest.raises(DataError, match=r"shard 00001 .* is missing"):
        open_store(object_store.url).obs_of(1)


def test_a_store_that_changed_never_meets_the_cache_of_its_predecessor(
    tmp_path: Path, make_store: MakeStore, cells: CellBatch
) -> None:
    folder = make_store(tmp_path / "store", cells)
    with serving(folder) as server:
        assert_serves(server.url, cells, tmp_path / "cache")
        other = random_cells(N_CELLS, seed=6)
        make_store(folder, other)
        assert_serves(server.url, other, tmp_path / "cache")


def test_damage_at_the_origin_is_found_through_the_cache(
    store: Path, cells: CellBatch, tmp_path: Path
) -> None:
    folder = shutil.copytree(store, tmp_path / "store")
    path = folder / "shards/00002/gene_delta/c/0/0"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with serving(folder) as server:
        opened = open_store(server.url, cache=tmp_path / "cache")
        for _ in range(2):
            with pytest.raises(DataError, match=r"shard 00002 .* is damaged"):
                opened.read_cells(np.arange(N_CELLS))
        assert len(opened.read_cells([0])) == 1


def test_a_server_that_goes_away_is_named_with_the_shard(store: Path) -> None:
    with serving(store) as server:
        opened = open_store(server.url)
        opened.read_cells([0])
        gc.collect()
        server.stop()
        with pytest.raises(
            DataError, match=r"shard 0000\d of the store http://127\.0\.0\.1.* cannot be read"
        ):
            opened.read_cells([N_CELLS - 1])
        with pytest.raises(DataError, match="cannot be read"):
            open_store(server.url)


def test_a_url_without_a_store_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as server, pytest.raises(DataError, match="not a CellFoundry store"):
        open_store(server.url)
    with pytest.raises(DataError, match="nosuch://store"):
        open_store("nosuch://store")


def on_disk(folder: Path) -> int:
    """Bytes of the files' blocks."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def test_the_cache_stays_within_its_limit_on_the_disk(tmp_path: Path) -> None:
    limit = 100 * 4096
    other = RangeCache(tmp_path, "other", limit)
    old = [ByteRange("a", 0, 4000)]
    other.put(old, [bytes(4000)])
    caches = [RangeCache(tmp_path, store, limit) for store in ("store", "store", "third")]
    for number in range(1000):
        cache = caches[number % 3]
        wanted = [ByteRange("shards/00000/count/c/0/0", number * 500, number * 500 + 500)]
        cache.put(wanted, [bytes([number % 251]) * 500])
        kept = cache.get(wanted)
        assert kept is not None
        assert kept[0].tobytes() == bytes([number % 251]) * 500
    assert limit // 2 < on_disk(tmp_path) <= limit + 4096  # and the tally
    assert other.get(old) is None


def test_the_folder_of_the_cache_is_looked_at_only_when_it_may_be_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    walk = os.walk

    def counting(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        looks.append(top)
        return walk(top)

    monkeypatch.setattr(os, "walk", counting)
    for number in range(100):
        cache = RangeCache(tmp_path, "store", limit=100 * 4096)  # as a new process has it
        cache.put([ByteRange("a", number, number + 1)], [b"x"])
    assert not looks
    cache.put([ByteRange("a", 100, 101)], [b"x"])
    assert len(looks) == 1


def test_the_pieces_of_a_chunk_are_one_file_of_the_cache(store: Path, tmp_path: Path) -> None:
    with serving(store) as server:
        opened = open_store(server.url, cache=tmp_path)
        before = opened.chunk_row_nnz(np.arange(opened.n_chunks))
        files = {path for path in tmp_path.rglob("*") if path.is_file()}
        opened.read_cells(np.arange(N_CELLS))
        added = {path for path in tmp_path.rglob("*") if path.is_file()} - files
        shards = len(opened.first_rows) - 1
        vocabulary_and_shard_indexes = 1 + 4 * shards
        assert len(added) <= opened.n_chunks + vocabulary_and_shard_indexes
        np.testing.assert_array_equal(before, np.diff(opened.read_cells(np.arange(N_CELLS)).indptr))


def test_a_full_cache_removes_nobody_elses_files(tmp_path: Path) -> None:
    foreign = [tmp_path / "thesis.docx", tmp_path / "photos" / "1.jpg", tmp_path / ("ab" * 32) / "0-100"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
    cache = RangeCache(tmp_path, "ab" * 32, limit=1500)
    for start in range(0, 5000, 100):
        cache.put([ByteRange("shards/00000/count/c/0/0", start, start + 100)], [bytes(100)])
    assert all(path.read_bytes() == bytes(1000) for path in foreign)
