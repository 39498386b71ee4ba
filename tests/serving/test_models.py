"""Several models and versions behind one endpoint, and new versions in place of old ones while requests run."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
import tritonclient.http
from scraped import scraped
from soak_server import CONFIG, GENES
from tritonclient.utils import InferenceServerException

from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_serving.client import Client
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.server import running_service, running_with_grpc
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import FolderSource, named_folder
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export.check import random_cells

SERVE = "import sys; from cellfoundry_serving.endpoint.server import serve; serve(sys.argv[1:], port=0)"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four models of one shape with weights of their own."""
    folder = tmp_path_factory.mktemp("trained")
    for seed in range(4):
        torch.manual_seed(seed)
        save_model(CellModel(CONFIG), GENES, folder / str(seed), {})
    return [folder / str(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def expected(trained: list[Path]) -> list[np.ndarray]:
    return [open_engine(folder, "torch").encode(CELLS) for folder in trained]


CELLS = random_cells(CONFIG.n_genes, (5, 90, 31), seed=3)
NO_CACHE = Limits(cache_bytes=0)


def serving(*sources: FolderSource, limits: Limits = NO_CACHE) -> Iterator[str]:
    return running_service(Service(sources, limits), allow_load=True)


def source(name: str, folder: Path, keep: int = 1) -> FolderSource:
    return FolderSource(name, folder, lambda path: open_engine(path, "torch"), keep)


def asked(url: str, path: str) -> np.ndarray:
    """The vectors of CELLS, by Arrow's twin of names: JSON."""
    bodies = []
    for row in range(len(CELLS)):
        entries = slice(CELLS.indptr[row], CELLS.indptr[row + 1])
        genes = [GENES[gene] for gene in CELLS.gene_ids[entries]]
        bodies.append({"genes": genes, "counts": CELLS.counts[entries].tolist()})
    answer = httpx.post(f"{url}/v1/embed{path}", json={"cells": bodies}, timeout=60)
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["embedding"], dtype=np.float32)


def close(got: np.ndarray, wanted: np.ndarray) -> bool:
    return got.shape == wanted.shape and bool(np.abs(got - wanted).max() < 1e-5)


def load(url: str, name: str, verb: str = "load") -> None:
    answer = httpx.post(f"{url}/v2/repository/models/{name}/{verb}", timeout=60)
    assert answer.status_code == 200, answer.text


def index(url: str) -> list[tuple[str, str, str]]:
    found = httpx.post(f"{url}/v2/repository/index").json()
    return [(model["name"], model["version"], model["state"]) for model in found]


def test_models_and_versions_answer_by_name(
    trained: list[Path], expected: list[np.ndarray], tmp_path: Path
) -> None:
    for number in (1, 2, 10):
        shutil.copytree(trained[{1: 0, 2: 1, 10: 2}[number]], tmp_path / "blood" / str(number))
    with serving(source("blood", tmp_path / "blood", keep=2), source("brain", trained[3])) as url:
        assert index(url) == [("blood", "2", "READY"), ("blood", "10", "READY"), ("brain", "1", "READY")]
        assert close(asked(url, ""), expected[2])
        assert close(asked(url, "?model=blood&version=2"), expected[1])
        assert close(asked(url, "?model=brain"), expected[3])
        assert httpx.get(f"{url}/v2/models/blood").json()["versions"] == ["2", "10"]
        assert scraped(url, "cellfoundry_cells_total", model="blood", version="2") == len(CELLS)
        for path in ("?model=liver", "?model=blood&version=1", "?version=x"):
            refused = httpx.post(f"{url}/v1/embed{path}", json={"genes": [GENES[0]], "counts": [1]})
            assert refused.status_code == 404
            assert str(tmp_path) not in refused.text


def test_kept_results_are_of_their_model(trained: list[Path], expected: list[np.ndarray]) -> None:
    with serving(source("a", trained[0]), source("b", trained[1]), limits=Limits()) as url:
        for _ in range(2):
            assert close(asked(url, "?model=a"), expected[0])
            assert close(asked(url, "?model=b"), expected[1])


def under_load(url: str, change: Callable[[], None], wanted: list[np.ndarray]) -> list[int]:
    """Asks from four threads while ``change`` runs; every answer must be that of one of the versions whole.

    Returns how often each of ``wanted`` was answered.
    """
    stop = threading.Event()

    def ask() -> list[int]:
        seen = [0] * len(wanted)
        while not stop.is_set():
            got = asked(url, "")
            hits = [close(got, version) for version in wanted]
            assert sum(hits) == 1
            seen[hits.index(True)] += 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        askers = [pool.submit(ask) for _ in range(4)]
        try:
            change()
        finally:
            stop.set()
        return np.sum([asker.result() for asker in askers], axis=0).tolist()


def test_a_new_version_takes_over_and_no_request_is_lost(
    trained: list[Path], expected: list[np.ndarray], tmp_path: Path
) -> None:
    shutil.copytree(trained[0], tmp_path / "1")
    with serving(source("cells", tmp_path)) as url:

        def deploy() -> None:
            for number in (2, 3, 4):
                shutil.copytree(trained[number - 1], tmp_path / str(number))
                load(url, "cells")
                assert close(asked(url, ""), expected[number - 1])

        assert all(under_load(url, deploy, expected))
        assert index(url) == [("cells", "4", "READY")]
        until(lambda: 'version="1"' not in httpx.get(f"{url}/metrics").text)  # whose series have gone too


def test_a_folder_without_numbers_is_read_anew_once_its_files_have_changed(
    trained: list[Path], expected: list[np.ndarray], tmp_path: Path
) -> None:
    shutil.copytree(trained[0], tmp_path / "model")
    with serving(source("cells", tmp_path / "model")) as url:
        load(url, "cells")
        assert index(url) == [("cells", "1", "READY")]
        shutil.copytree(trained[1], tmp_path / "model", dirs_exist_ok=True)
        load(url, "cells")
        assert index(url) == [("cells", "2", "READY")]
        assert close(asked(url, ""), expected[1])


def test_a_damaged_version_is_refused_and_the_old_one_goes_on(
    trained: list[Path], expected: list[np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(trained[0], tmp_path / "1")
    with serving(source("cells", tmp_path)) as url:
        shutil.copytree(trained[1], tmp_path / "2")
        (tmp_path / "2" / "model.safetensors").write_bytes(b"damaged")
        refused = httpx.post(f"{url}/v2/repository/models/cells/load", timeout=60)
        assert refused.status_code == 400
        assert refused.json()["error"] == (
            "Model 'cells': its new version cannot be opened; the server's log says why."
        )
        assert "model.safetensors" in caplog.text
        assert close(asked(url, ""), expected[0])
        assert index(url) == [("cells", "1", "READY")]


def test_tritons_client_unloads_and_loads(trained: list[Path]) -> None:
    with serving(source("cells", trained[0])) as url:
        client = tritonclient.http.InferenceServerClient(url.removeprefix("http://"))
        client.unload_model("cells")
        assert not client.is_model_ready("cells")
        assert index(url) == [("cells", "", "UNAVAILABLE")]
        refused = httpx.post(f"{url}/v1/embed", json={"genes": [GENES[0]], "counts": [1]})
        assert (refused.status_code, refused.json()) == (404, {"error": "Model 'cells' is not loaded."})
        client.load_model("cells")
        assert client.is_model_ready("cells")
        with pytest.raises(InferenceServerException, match="no parameters"):
            client.load_model("cells", config="{}")
        with pytest.raises(InferenceServerException, match="no such model"):
            client.load_model("liver")
        client.close()


@pytest.mark.parametrize("wire", ["v2", "arrow"])
def test_without_its_first_model_an_endpoint_never_answers_by_another(trained: list[Path], wire: str) -> None:
    with serving(source("a", trained[0]), source("b", trained[1])) as url, Client(url, wire=wire) as client:
        client.embed(CELLS)
        load(url, "a", "unload")
        assert client.models() == ["b"]
        with pytest.raises(ServingError, match="answered 404: Model 'a' is not loaded"):
            client.embed(CELLS)
        assert len(client.embed(CELLS, model="b")) == len(CELLS)


def test_an_endpoint_without_any_model_is_alive_and_not_ready(trained: list[Path]) -> None:
    models = Service([source("a", trained[0]), source("b", trained[1])], NO_CACHE)
    with (
        running_with_grpc(models, allow_load=True) as (url, address),
        triton.InferenceServerClient(address) as grpc,
    ):
        load(url, "a", "unload")
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        assert grpc.is_server_ready()
        load(url, "b", "unload")
        refused = httpx.get(f"{url}/v2/health/ready")
        assert (refused.status_code, refused.json()["error"]) == (
            503,
            "No model is loaded; load one, or ask another server.",
        )
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
        assert not grpc.is_server_ready()
        load(url, "b")
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        assert grpc.is_server_ready()


def test_the_index_can_be_of_models_that_are_ready(trained: list[Path]) -> None:
    with serving(source("a", trained[0]), source("b", trained[1])) as url:
        load(url, "a", "unload")
        for body, names in ({"ready": True}, ["b"]), ({"ready": False}, ["a", "b"]), ({}, ["a", "b"]):
            found = httpx.post(f"{url}/v2/repository/index", json=body).json()
            assert [model["name"] for model in found] == names
        refused = httpx.post(f"{url}/v2/repository/index", json={"ready": "yes"})
        assert (refused.status_code, refused.json()) == (400, {"error": "'ready' must be true or false."})


def test_clients_load_only_where_they_may(trained: list[Path]) -> None:
    with running_service(Service([source("cells", trained[0])], Limits())) as url:
        for verb in ("load", "unload"):
            refused = httpx.post(f"{url}/v2/repository/models/cells/{verb}")
            assert refused.status_code == 403
            assert "--allow-load" in refused.json()["error"]


def test_sighup_loads_new_versions(trained: list[Path], expected: list[np.ndarray], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "1")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, f"cells={tmp_path}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "cells 1: " in line
        url = line.split()[2]
        shutil.copytree(trained[1], tmp_path / "2")
        process.send_signal(signal.SIGHUP)
        until(lambda: index(url) == [("cells", "2", "READY")])
        assert close(asked(url, ""), expected[1])
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_statistics_are_those_of_the_requests(trained: list[Path]) -> None:
    with serving(source("cells", trained[0])) as url, Client(url) as client:
        for rows in (CELLS, CELLS.select(np.array([1]))):
            client.embed(rows)
        (found,) = httpx.get(f"{url}/v2/models/cells/stats").json()["model_stats"]
        assert httpx.get(f"{url}/v2/models/stats").json() == {"model_stats": [found]}
    assert (found["inference_count"], found["execution_count"]) == (4, 2)
    spans = found["inference_stats"]
    assert {spans[name]["count"] for name in ("success", "queue", "compute_infer")} == {2}
    assert spans["success"]["ns"] > spans["compute_infer"]["ns"] > 0
    assert spans["fail"]["count"] == 0


def test_the_statistics_tell_kept_results_and_no_refusals_as_failures(trained: list[Path]) -> None:
    with serving(source("cells", trained[0]), limits=Limits()) as url:
        for _ in range(2):
            asked(url, "")
        assert (
            httpx.post(f"{url}/v1/embed?target=x9", json={"genes": [GENES[0]], "counts": [1]}).status_code
            == 400
        )
        (found,) = httpx.get(f"{url}/v2/models/cells/stats").json()["model_stats"]
        assert scraped(url, "cellfoundry_request_seconds_count", route="/v1/embed") == 2
    spans = {name: span["count"] for name, span in found["inference_stats"].items()}
    # The refused cell was looked for too.
    assert spans | {"cache_hit": 3, "cache_miss": 4, "fail": 0, "success": 2} == spans


@pytest.mark.parametrize("text", ["models/cells", "./a=b", "/abs/with=sign"])
def test_a_folder_may_hold_an_equals_sign(text: str) -> None:
    assert named_folder(text) == ("cellfoundry", Path(text))


def test_names_are_checked(trained: list[Path]) -> None:
    assert named_folder("blood=a/b") == ("blood", Path("a/b"))
    with pytest.raises(ServingError, match="the same name"):
        Service([source("a", trained[0]), source("a", trained[1])], Limits())
    with pytest.raises(ServingError, match="no such model directory"):
        Service([source("a", trained[0] / "absent")], Limits())
