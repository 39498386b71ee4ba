"""An uploaded h5ad is embedded like any other cells, and can neither hurt the server nor read its files."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pytest
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.endpoint import h5ad
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
        reader = h5ad.H5adReader(engine.vocab_genes, Limits())
        upload = asyncio.create_task(reader.read(file.read_bytes()))
        while not started:
            await asyncio.sleep(0)
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        assert started[0].returncode == -signal.SIGKILL

    asyncio.run(asyncio.wait_for(leave(), 20))
    assert not list(uploads.iterdir())


def test_limits_hold_for_files(file: Path, engine: Engine) -> None:
    vocab = Vocabulary(engine.vocab_genes)
    assert len(read_cells(file, vocab, max_cells=9, max_tokens=735)) == 9
    with pytest.raises(DataError, match="9 cells, a request may have 1 to 8"):
        read_cells(file, vocab, max_cells=8, max_tokens=735)
    with pytest.raises(DataError, match="more than 734 counts"):
        read_cells(file, vocab, max_cells=9, max_tokens=734)
