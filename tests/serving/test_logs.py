"""Each request has an id, which its answer and its log lines carry."""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from served import served

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint import h5ad
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.logs import JsonFormatter, TextFormatter
from cellfoundry_serving.endpoint.server import running
from cellfoundry_serving.engines.base import Engine

KEY = "k" * 32
RANDOM_ID = re.compile(r"[0-9a-f]{32}")


class FailingEngine(Engine):
    """Sums of counts; a batch of three cells fails."""

    name = "torch"

    def __init__(self) -> None:
        info = {"weights_sha256": "0", "vocabulary_sha256": "0"}
        super().__init__(("A", "B"), 1, info, "for tests")

    def shape(self, output: str, pool: str) -> tuple[int, ...]:
        return (1,)

    def encode(self, batch: CellBatch, **conventions: Any) -> np.ndarray:
        if len(batch) == 3:
            raise RuntimeError("first line\nsecond line")
        return batch.totals().astype(np.float32)[:, None]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with failing() as url:
        yield url


def failing() -> AbstractContextManager[str]:
    return running(FailingEngine(), limits=Limits(cache_bytes=0))


def embed(url: str, cells: int = 1, **headers: str) -> httpx.Response:
    body = {"cells": [{"genes": ["A", "B"], "counts": [1, 2]}] * cells}
    return httpx.post(f"{url}/v1/embed?pool=max", json=body, headers=headers)


@pytest.mark.parametrize("sent", ["a", "req-1.2_3", "x" * 128])
def test_a_client_gets_its_own_id_back_with_every_answer(url: str, sent: str) -> None:
    header = {"X-Request-Id": sent}
    answers = [embed(url, **header), embed(url, 3, **header), httpx.get(f"{url}/nothing", headers=header)]
    answers.append(httpx.get(f"{url}/v1/embed", headers=header))
    assert [answer.status_code for answer in answers] == [200, 500, 404, 405]
    assert {answer.headers["x-request-id"] for answer in answers} == {sent}


@pytest.mark.parametrize("sent", [None, "", "a b", "x" * 129, 'a"}', "é".encode(), "a\tb"])
def test_any_other_id_is_replaced_by_a_random_one(url: str, sent: Any) -> None:
    headers = {} if sent is None else {"X-Request-Id": sent}
    ids = {httpx.get(f"{url}/v2", headers=headers).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(RANDOM_ID.fullmatch(each) for each in ids)


def test_a_failure_is_one_json_object_with_its_traceback_and_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    with caplog.at_level(logging.INFO, "cellfoundry_serving"), failing() as url:
        embed(url, 3, **{"X-Request-Id": "of-the-failure"})
    failure, request = (json.loads(line) for line in caplog.text.splitlines())
    assert (failure["level"], failure["request_id"]) == ("ERROR", "of-the-failure")
    assert failure["traceback"].endswith("RuntimeError: first line\nsecond line")
    assert (request["level"], request["request_id"]) == ("INFO", "of-the-failure")
    assert request["status"] == 500
    assert request["bytes_out"] > 0


def test_a_line_of_text_can_be_read_by_people(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(TextFormatter())
    with caplog.at_level(logging.INFO, "cellfoundry_serving"), failing() as url:
        embed(url, **{"X-Request-Id": "seven"})
    assert re.fullmatch(
        r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 INFO request request_id=seven method=POST "
        r"route=/v1/embed status=200 ms=\d+\.\d+ cells=1 bytes_in=46 bytes_out=\d+ client=127\.0\.0\.1\n",
        caplog.text,
    )


def test_what_others_say_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(TextFormatter())
    logging.getLogger("cellfoundry_serving").warning(
        "one\nERROR two", extra={"facts": {"client": "1.2.3.4\nERROR status=500"}}
    )
    assert caplog.text.count("\n") == 1
    assert caplog.text.endswith('WARNING one ERROR two client="1.2.3.4\\nERROR status=500"\n')


def test_starting_a_process_beside_grpc_writes_no_line_of_its_own(
    model_dir: Path, tmp_path: Path, atlas: Path
) -> None:
    with served(model_dir, tmp_path / "log", "--log-format", "json") as command:
        with ExitStack() as clients, ThreadPoolExecutor(2) as pool:
            grpc = [clients.enter_context(triton.InferenceServerClient(command.grpc)) for _ in range(2)]
            stop = threading.Event()

            def ask(client: triton.InferenceServerClient) -> None:
                while not stop.is_set():
                    assert client.is_server_live()

            asking = [pool.submit(ask, client) for client in grpc]
            headers = {"Content-Type": h5ad.MEDIA_TYPE}
            statuses = [
                httpx.post(
                    f"{command.url}/v1/embed", content=atlas.read_bytes(), headers=headers, timeout=60
                ).status_code
                for _ in range(2)
            ]
            stop.set()
            for client in asking:
                client.result(20)
        assert statuses == [200] * 2
    lines = [json.loads(line) for line in command.log.read_text().splitlines()]
    assert {line["logger"] for line in lines} == {"cellfoundry_serving.access"}


def test_the_command_logs_requests_as_json_and_no_secrets(model_dir: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    with served(model_dir, tmp_path / "log", "--log-format", "json", "--api-keys", keys) as command:
        header = {"Authorization": f"Bearer {KEY}"}
        body = {"genes": ["A1BG"], "counts": [[3], [4]]}
        answers = [
            httpx.post(f"{command.url}/v1/embed?pool=max", json=body, headers=header),
            httpx.get(f"{command.url}/v1/vocabulary?secret=1"),
            httpx.get(f"{command.url}/v1/results/secret.npy?secret=1"),
            httpx.get(f"{command.url}/secret", headers=header),
        ]
        for quiet in ("/v2/health/live", "/v2/health/ready", "/metrics"):
            assert httpx.get(command.url + quiet, headers=header).status_code == 200
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(20) == 0
    text = command.log.read_text()
    assert KEY not in text
    assert "secret" not in text
    assert "A1BG" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    shown = [(line["method"], line["route"], line["status"]) for line in lines]
    assert shown == [
        ("POST", "/v1/embed", 200),
        ("GET", None, 401),
        ("GET", "/v1/results/{name}.npy", 404),
        ("GET", None, 404),
    ]
    assert [line["request_id"] for line in lines] == [answer.headers["x-request-id"] for answer in answers]
    first = lines[0]
    assert first["cells"] == 2
    assert first["bytes_in"] == len(answers[0].request.content)
    assert first["bytes_out"] == len(answers[0].content)
    assert first["client"] == "127.0.0.1"
