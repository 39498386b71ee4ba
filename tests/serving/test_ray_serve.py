"""The endpoint as replicas of Ray Serve, on a real cluster."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http

from cellfoundry_bench.peers.ray_serve_alone import ray_serve_alone
from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client import Client
from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.ray_serve import Scale, deployed, serve_on_ray
from cellfoundry_serving.endpoint.sources import FolderSource
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError

KEY = "a-key-for-these-tests"


def test_a_model_that_no_replica_can_open_is_one_sentence(ray_local: None, model_dir: Path) -> None:
    def broken(folder: Path) -> Engine:
        raise ServingError("for tests")

    with (
        pytest.raises(ServingError, match="could not start the endpoint"),
        deployed(
            [FolderSource("broken", model_dir, broken)], Limits(), None, Scale(), "127.0.0.1", free_port()
        ),
    ):
        pass


def test_what_runs_on_the_cluster_already_is_not_touched(ray_local: None, model_dir: Path) -> None:
    source, elsewhere = FolderSource("cells", model_dir, open_engine), free_port()
    taken = free_port()
    with ray_serve_alone(taken, b"still here", "/ask"):
        with (
            pytest.raises(ServingError, match=rf"does not listen on 127\.0\.0\.1, port {elsewhere}"),
            deployed([source], Limits(), None, Scale(), "127.0.0.1", elsewhere),
        ):
            pass
        assert httpx.post(f"http://127.0.0.1:{taken}/ask").content == b"still here"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def on_ray(ray_local: None, model_dir: Path) -> Iterator[str]:
    port = free_port()
    source = FolderSource("cells", model_dir, functools.partial(open_engine, engine="torch"))
    scale = Scale(min_replicas=2, max_replicas=2, cpus=0.5)
    with deployed([source], Limits(cells=64), ApiKeys([KEY]), scale, "127.0.0.1", port):
        with (
            pytest.raises(ServingError, match="Another `cellfoundry serve --ray` runs"),
            deployed([source], Limits(), None, scale, "127.0.0.1", port),
        ):
            pass
        yield f"http://127.0.0.1:{port}"


def test_replicas_answer_as_the_engine_does(on_ray: str, engine: Engine, cells: CellBatch) -> None:
    with Client(on_ray, api_key=KEY) as client:
        assert client.models() == ["cells"]
        for _ in range(6):
            np.testing.assert_allclose(client.embed(cells), engine.encode(cells), atol=1e-5, rtol=0)
    with tritonclient.http.InferenceServerClient(on_ray.removeprefix("http://")) as client:
        assert client.is_server_ready()


def test_its_limits_and_keys_are_those_of_the_endpoint(on_ray: str, engine: Engine) -> None:
    empty = {"genes": [], "counts": []}
    assert httpx.post(f"{on_ray}/v1/embed", json={"cells": [empty]}).status_code == 401
    many = httpx.post(
        f"{on_ray}/v1/embed", json={"cells": [empty] * 65}, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert (many.status_code, list(many.json())) == (413, ["error"])


def test_an_answer_carries_one_request_id(on_ray: str) -> None:
    sent = httpx.get(f"{on_ray}/v2/health/ready", headers={"X-Request-Id": "seven"})
    assert sent.headers.get_list("x-request-id") == ["seven"]


def test_a_result_is_found_by_whichever_replica_is_asked(on_ray: str, engine: Engine) -> None:
    table = np.ones((1, len(engine.vocab_genes)))
    body = {
        "inputs": [
            {"name": "data_numpy", "datatype": "FP32", "shape": list(table.shape), "data": [table.tolist()]}
        ]
    }
    answer = httpx.post(
        f"{on_ray}/inference/xtrimogene", json=body, headers={"B-Authorization": KEY}, timeout=60
    )
    found = answer.json()["outputs"][0]["data"][0]
    contents = [httpx.get(found).content for _ in range(8)]
    assert contents[0].startswith(b"\x93NUMPY")
    assert len(set(contents)) == 1
    assert httpx.get(found.replace(".npy", "x.npy")).status_code == 404


def test_a_wrong_path_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="no such model directory"):
        serve_on_ray([str(tmp_path / "absent")])
    with pytest.raises(ServingError, match=r"--api-keys FILE"):
        serve_on_ray([str(tmp_path)], host="0.0.0.0")


def test_scale_is_checked() -> None:
    with pytest.raises(ValueError, match="max_replicas"):
        Scale(min_replicas=3, max_replicas=2)
