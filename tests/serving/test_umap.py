"""UMAPs of uploads: the same for the same file, within limits, and gone with their client."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from odd_engines import GatedEngine

from cellfoundry_serving.endpoint import h5ad, umap_worker
from cellfoundry_serving.endpoint.errors import FAILED, RequestError
from cellfoundry_serving.endpoint.label_columns import label_columns
from cellfoundry_serving.endpoint.openapi import UMAP_ANSWER
from cellfoundry_serving.endpoint.server import running
from cellfoundry_serving.endpoint.umap import UmapMaker
from cellfoundry_serving.umap_layout import umap_coordinates

HEADERS = {"Content-Type": h5ad.MEDIA_TYPE}


def test_a_file_gives_places_and_labels(url: str, atlas: Path) -> None:
    response = httpx.post(f"{url}/v1/umap", content=atlas.read_bytes(), headers=HEADERS, timeout=120)
    assert response.status_code == 200, response.text
    answer = response.json()
    jsonschema.validate(answer, UMAP_ANSWER["content"]["application/json"]["schema"])
    assert [axis.index(None) for axis in (answer["x"], answer["y"])] == [2, 2]  # it has no counts
    assert sum(x is not None for x in answer["x"]) == 39
    types = answer["columns"]["cell_type"]
    assert types["categories"] == [f"type {kind}" for kind in range(4)]
    assert types["codes"] == [-1 if cell == 3 else cell % 4 for cell in range(40)]


@pytest.mark.parametrize("cells", [5, 15, 16])
def test_the_same_cells_have_the_same_places_and_few_have_some_too(cells: int) -> None:
    features = np.random.default_rng(0).normal(size=(cells, 8)).astype(np.float32)
    features[:, 0] = 1
    layout = umap_coordinates(features)
    assert layout.shape == (cells, 2)
    assert np.isfinite(layout).all()
    np.testing.assert_array_equal(umap_coordinates(features), layout)


def test_fewer_than_five_cells_have_no_umap(url: str, adata: AnnData, tmp_path: Path) -> None:
    adata[[0, 1, 2, 3, 4, 8]].copy().write_h5ad(tmp_path / "few.h5ad")
    content = (tmp_path / "few.h5ad").read_bytes()
    response = httpx.post(f"{url}/v1/umap", content=content, headers=HEADERS, timeout=60)
    assert response.status_code == 400
    assert response.json() == {"error": "A UMAP needs at least 5 cells with counts; the file has 4."}


@pytest.mark.parametrize(
    ("query", "media_type", "status", "message"),
    [
        ("", "application/json", 415, "application/x-hdf5"),
        ("?pool=mean", h5ad.MEDIA_TYPE, 400, "'pool' must be one of"),
        ("?colour=red", h5ad.MEDIA_TYPE, 400, "no parameter 'colour'"),
    ],
)
def test_what_is_no_upload_gets_one_sentence(
    url: str, query: str, media_type: str, status: int, message: str
) -> None:
    response = httpx.post(f"{url}/v1/umap{query}", content=b"{}", headers={"Content-Type": media_type})
    assert response.status_code == status
    assert message in response.json()["error"]


@pytest.fixture
def two_cells(tmp_path: Path) -> bytes:
    """A file of the gated engine's genes, too few for a UMAP."""
    file = AnnData(np.ones((2, 2), np.float32), var=pd.DataFrame(index=["A", "B"]))
    file.write_h5ad(tmp_path / "two.h5ad")
    return (tmp_path / "two.h5ad").read_bytes()


def test_more_than_four_at_once_are_refused(two_cells: bytes) -> None:
    engine = GatedEngine()
    with running(engine) as url, ThreadPoolExecutor(5) as pool:
        calls = [
            pool.submit(httpx.post, f"{url}/v1/umap", content=two_cells, headers=HEADERS, timeout=60)
            for _ in range(5)
        ]
        refused = next(as_completed(calls)).result()
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
        engine.gate.set()
        assert sorted(call.result().status_code for call in calls) == [400] * 4 + [429]


def test_clients_that_send_slowly_take_no_place(url: str) -> None:
    address = urlsplit(url)
    head = f"POST /v1/umap HTTP/1.1\r\nHost: a\r\nContent-Type: {h5ad.MEDIA_TYPE}\r\n"
    with contextlib.ExitStack() as clients:
        for _ in range(4):
            client = socket.create_connection((address.hostname, address.port), timeout=20)
            clients.enter_context(client)
            client.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 10\r\n\r\n".encode())
            assert b"100 Continue" in client.recv(1000)  # its body is awaited
        assert httpx.post(f"{url}/v1/umap", content=b"none", headers=HEADERS, timeout=60).status_code == 400


def test_an_upload_and_a_umap_have_one_process_at_a_time(
    two_cells: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[asyncio.subprocess.Process] = []
    running_before: list[int] = []
    create = asyncio.create_subprocess_exec

    async def noted(*args: str, **options: Any) -> asyncio.subprocess.Process:
        ended = sum(process.returncode is not None for process in started)
        running_before.append(len(running_before) - ended)
        started.append(await create(*args, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    engine = GatedEngine()
    engine.gate.set()
    with running(engine) as url, ThreadPoolExecutor(2) as pool:
        paths = ["/v1/umap", "/v1/embed"]
        calls = [
            pool.submit(httpx.post, url + path, content=two_cells, headers=HEADERS, timeout=60)
            for path in paths
        ]
        assert [call.result().status_code for call in calls] == [400, 200]
    assert running_before == [0, 0]


def test_a_umap_whose_client_leaves_ends_its_process_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started: list[asyncio.subprocess.Process] = []
    create = asyncio.create_subprocess_exec

    async def noted(*args: str, **options: Any) -> asyncio.subprocess.Process:
        started.append(await create(*args, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)

    async def leave() -> None:
        work = asyncio.create_task(UmapMaker(asyncio.Semaphore(1)).layout(np.ones((9, 3), np.float32)))
        while not started:
            await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert started[0].returncode == -signal.SIGKILL

    asyncio.run(asyncio.wait_for(leave(), 20))
    assert not list(tmp_path.iterdir())


def test_a_umap_that_fails_is_a_failure_and_the_log_says_how(
    url: str, atlas: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(umap_worker, "EMBEDDING", "elsewhere.npy")
    response = httpx.post(f"{url}/v1/umap", content=atlas.read_bytes(), headers=HEADERS, timeout=60)
    assert (response.status_code, response.json()) == (500, {"error": FAILED})
    assert "umap_worker ended with status 1" in caplog.text
    assert "FileNotFoundError" in caplog.text


def test_a_umap_that_is_killed_needs_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    create = asyncio.create_subprocess_exec

    async def killed(*args: str, **options: Any) -> asyncio.subprocess.Process:
        process = await create(*args, **options)
        process.kill()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", killed)
    with pytest.raises(RequestError, match="more memory than a request may take; send fewer cells") as caught:
        asyncio.run(UmapMaker(asyncio.Semaphore(1)).layout(np.ones((9, 3), np.float32)))
    assert caught.value.status == 413


def test_labels_are_columns_of_few_values() -> None:
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(["b", "a", None, "b"], categories=["b", "a", "unused"]),
            "long": ["x" * 1000, "y", "y", "y"],
            "flag": [True, False, True, True],
            "cluster": pd.Categorical([3, 1, 3, 3]),
            "depth": [1.0, 2.0, 1.0, 2.0],
            "one": ["a"] * 4,
        }
    )
    columns = label_columns(obs)
    assert list(columns) == ["type", "long", "flag", "cluster"]
    assert columns["type"] == {"categories": ["b", "a"], "codes": [0, 1, -1, 0]}
    assert columns["long"]["categories"] == ["x" * 100, "y"]
    assert columns["flag"]["categories"] == ["False", "True"]
    assert columns["cluster"] == {"categories": ["1", "3"], "codes": [1, 0, 1, 1]}
    names = [f"c{row}" for row in range(51)]
    many = pd.DataFrame({"names": names} | {f"half{n}": ["a", "b", "b"] * 17 for n in range(40)})
    assert list(label_columns(many)) == [f"half{n}" for n in range(32)]
