"""An uploaded h5ad is embedded like any other cells, and can neither hurt the server nor read its files."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pytest
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.endpoint import h5ad, h5ad_worker, worker_process
from cellfoundry_serving.endpoint.errors import FAILED, RequestError
from cellfoundry_serving.endpoint.h5ad_worker import check_stays_inside, read_cells
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.engines.base import Engine

HEADERS = {"Content-Type": h5ad.MEDIA_TYPE}


@pytest.fixture
def file(adata: AnnData, tmp_path: Path) -> Path:
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def test_an_upload_gives_what_the_engine_computes(
    url: str, engine: Engine, cells: CellBatch, file: Path
) -> None:
    response = httpx.post(f"{url}/v1/embed?target=a5", content=file.read_bytes(), headers=HEADERS, timeout=60)
    assert response.status_code == 200, response.text
    got = np.array(response.json()["embedding"], dtype=np.float32)
    np.testing.assert_allclose(got, engine.encode(cells, target="a5"), atol=1e-4, rtol=0)


def test_a_file_that_is_none_is_refused_without_a_path(url: str) -> None:
    response = httpx.post(f"{url}/v1/embed", content=b"\x89HDF\r\n\x1a\n" * 40, headers=HEADERS, timeout=60)
    assert response.status_code == 400
    assert response.json() == {"error": "The file is not an h5ad that can be read."}


def external_link(file: h5py.File, other: Path) -> None:
    del file["X"]
    file["X"] = h5py.ExternalLink(str(other), "X")


def external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("layers/raw", shape=(8,), dtype="u1", external=[(str(other), 0, 8)])


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout(shape=(8,), dtype="u1")
    layout[:] = h5py.VirtualSource(str(other), "secret", shape=(8,))
    file.create_virtual_dataset("uns/seen", layout)


@pytest.mark.parametrize("refer", [external_link, external_storage, virtual])
def test_a_file_that_points_at_others_is_refused(refer: object, file: Path, tmp_path: Path) -> None:
    check_stays_inside(file)
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as secret:
        secret["secret"] = np.arange(8, dtype="u1")
    with h5py.File(file, "a") as opened:
        refer(opened, other)  # type: ignore[operator]
    with pytest.raises(DataError, match="send one that stands alone"):
        check_stays_inside(file)


def test_an_upload_whose_client_leaves_ends_its_process_and_leaves_no_file(
    file: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(uploads))
    started: list[asyncio.subprocess.Process] = []
    create = asyncio.create_subprocess_exec

    async def noted(*args: str, **options: Any) -> asyncio.subprocess.Process:
        started.append(await create(*args, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)

    async def leave() -> None:
        reader = h5ad.H5adReader(Limits(), asyncio.Semaphore(1))
        upload = asyncio.create_task(reader.read(file.read_bytes(), engine.vocab_genes))
        while not started:
            await asyncio.sleep(0)
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        assert started[0].returncode == -signal.SIGKILL

    asyncio.run(asyncio.wait_for(leave(), 20))
    assert not list(uploads.iterdir())


def test_more_than_four_files_that_wait_are_refused(file: Path, engine: Engine) -> None:
    async def crowd() -> None:
        turn = asyncio.Semaphore(1)
        reader = h5ad.H5adReader(Limits(), turn)
        async with turn:
            waiting = [asyncio.create_task(reader.read(b"none", engine.vocab_genes)) for _ in range(4)]
            await asyncio.sleep(0)  # all have begun
            with pytest.raises(RequestError, match="try again later") as refused:
                await reader.read(b"", engine.vocab_genes)
            assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "10"})
            for upload in waiting:
                upload.cancel()
            await asyncio.wait(waiting)
        assert len(await reader.read(file.read_bytes(), engine.vocab_genes)) == 9

    asyncio.run(asyncio.wait_for(crowd(), 30))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda adata: adata.X.__imul__(0.3),
            r"The file's values look already normalised \(row 0 \(barcode0\), gene \S+ = [\d.]+\); "
            "send raw counts, in X, raw or a layer.",
        ),
        (
            lambda adata: adata.X.__imul__(-1),
            r"The file: row 0 \(barcode0\), gene \S+ has the value -\d+; counts cannot be negative.",
        ),
        (
            lambda adata: setattr(adata, "var_names", [f"x{gene}" for gene in range(400)]),
            "The file: 0 of 400 gene columns match the vocabulary .*",
        ),
    ],
)
def test_refusals_speak_to_a_client_of_http(
    url: str, adata: AnnData, tmp_path: Path, change: Callable[[AnnData], object], sentence: str
) -> None:
    change(adata)
    adata.write_h5ad(tmp_path / "mine.h5ad")
    content = (tmp_path / "mine.h5ad").read_bytes()
    response = httpx.post(f"{url}/v1/embed", content=content, headers=HEADERS, timeout=60)
    assert response.status_code == 400
    assert re.fullmatch(sentence, response.json()["error"])


def replace_worker(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads are read by a module of this text."""
    (folder / f"{name}.py").write_text(text)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setattr(h5ad_worker, "__name__", name)


def test_an_error_of_the_reader_that_nobody_foresaw_is_the_files_and_is_logged(
    url: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace_worker(
        "surprised_worker",
        f"from {h5ad_worker.__name__} import main\n"
        f"import {h5ad_worker.__name__} as worker\n"
        f"from {worker_process.__name__} import run_task\n"
        "def read_cells(*arguments):\n"
        "    raise ZeroDivisionError('/secret/place')\n"
        "worker.read_cells = read_cells\n"
        "run_task(main)\n",
        tmp_path,
        monkeypatch,
    )
    response = httpx.post(f"{url}/v1/embed", content=file.read_bytes(), headers=HEADERS, timeout=60)
    assert response.status_code == 400
    assert response.json() == {"error": "The file is not an h5ad that can be read."}
    assert "ZeroDivisionError: /secret/place" in caplog.text


def test_a_file_that_takes_more_than_the_memory_is_refused(
    url: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_worker(
        "hungry_worker",
        f"from {worker_process.__name__} import MEMORY_BYTES, run_task\n"
        "run_task(lambda folder: bytearray(MEMORY_BYTES))\n",
        tmp_path,
        monkeypatch,
    )
    response = httpx.post(f"{url}/v1/embed", content=file.read_bytes(), headers=HEADERS, timeout=60)
    assert response.status_code == 400
    assert response.json() == {
        "error": "The file is not an h5ad that can be read within the memory of a request."
    }


def test_a_reader_that_fails_is_a_failure_of_the_server(
    url: str, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(h5ad_worker, "TASK", "elsewhere.json")
    response = httpx.post(f"{url}/v1/embed", content=file.read_bytes(), headers=HEADERS, timeout=60)
    assert (response.status_code, response.json()) == (500, {"error": FAILED})
    assert "h5ad_worker ended with status 1" in caplog.text


def test_a_system_without_limits_of_memory_reads_files_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    worker_process.limit_memory()


def test_limits_hold_for_files(file: Path, engine: Engine) -> None:
    source = SourceCells(file, Vocabulary(engine.vocab_genes))
    assert len(read_cells(source, max_cells=9, max_tokens=735)) == 9
    with pytest.raises(DataError, match="9 cells, a request may have 1 to 8"):
        read_cells(source, max_cells=8, max_tokens=735)
    with pytest.raises(DataError, match="more than 734 counts"):
        read_cells(source, max_cells=9, max_tokens=734)
