"""What the endpoint refuses, when, and that refusing frees what was taken."""

from __future__ import annotations

import inspect
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from cellfoundry.cli.serve import serve as serve_command
from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.server import running
from cellfoundry_serving.engines.base import Engine

CELL = {"genes": ["A", "B"], "counts": [1, 2]}  # 4 tokens


class GatedEngine(Engine):
    """Sums of counts; each call but the first, which warms up, waits while ``gate`` is closed."""

    name = "torch"

    def __init__(self) -> None:
        info = {"weights_sha256": "0", "vocabulary_sha256": "0"}
        super().__init__(("A", "B"), 1, info, "for tests")
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.calls: list[int] = []  # cells of each

    def shape(self, output: str, pool: str) -> tuple[int, ...]:
        return (1,)

    def encode(self, batch: CellBatch, **conventions: Any) -> np.ndarray:
        if self.calls:
            self.entered.set()
            assert self.gate.wait(30)
        self.calls.append(len(batch))
        return batch.totals().astype(np.float32)[:, None]


def post(url: str, cells: int = 1) -> httpx.Response:
    return httpx.post(f"{url}/v1/embed", json={"cells": [CELL] * cells}, timeout=30)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline


def test_a_full_queue_answers_429_and_takes_more_once_there_is_room() -> None:
    engine = GatedEngine()
    with running(engine, limits=Limits(queued_tokens=8, cache_bytes=0)) as url, ThreadPoolExecutor(1) as pool:
        assert post(url, 3).status_code == 413  # 12 tokens never fit
        running_now = pool.submit(post, url)
        assert engine.entered.wait(20)
        with socket.create_connection(urlsplit(url).netloc.split(":")) as waiting:  # type: ignore[arg-type]
            body = b'{"cells": [' + b'{"genes": ["A", "B"], "counts": [1, 2]},' * 2
            body = body[:-1] + b"]}"
            waiting.sendall(
                b"POST /v1/embed HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            until(lambda: post_refused(url))
            engine.gate.set()
            assert waiting.recv(100).startswith(b"HTTP/1.1 200")
        assert running_now.result().json()["embedding"] == [[3.0]]
        assert post(url).status_code == 200


def post_refused(url: str) -> bool:
    """The queue is full, once the request before has arrived; until then this one must not wait for ever."""
    try:
        response = httpx.post(f"{url}/v1/embed", json={"cells": [CELL] * 2}, timeout=0.5)
    except httpx.ReadTimeout:
        return False
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    return True


def test_an_answer_that_takes_too_long_is_504_and_its_cells_are_not_computed() -> None:
    engine = GatedEngine()
    with running(engine, limits=Limits(timeout_s=0.3, cache_bytes=0)) as url:
        first, second = post(url), post(url, 2)
        assert [first.status_code, second.status_code] == [504, 504]
        assert "longer than 0.3 s" in first.json()["error"]
        engine.gate.set()
        until(lambda: post(url).status_code == 200)
    assert 2 not in engine.calls[1:]  # the first was running already; the second had left the queue


def test_a_client_that_left_while_it_waited_costs_nothing() -> None:
    engine = GatedEngine()
    with running(engine, limits=Limits(cache_bytes=0)) as url, ThreadPoolExecutor(1) as pool:
        running_now = pool.submit(post, url)
        assert engine.entered.wait(20)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/embed", json={"cells": [CELL] * 2}, timeout=0.5)
        until(lambda: 'status="499"} 1' in httpx.get(f"{url}/metrics").text)
        assert "cellfoundry_queued_tokens 0" in httpx.get(f"{url}/metrics").text
        engine.gate.set()
        assert running_now.result().status_code == 200
    assert engine.calls[1:] == [1]


def test_a_body_that_does_not_arrive_is_408() -> None:
    with running(GatedEngine(), limits=Limits(timeout_s=0.3)) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
            client.settimeout(20)
            assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_the_command_states_the_defaults_of_the_limits() -> None:
    options = inspect.signature(serve_command).parameters
    stated = {
        "body_bytes": options["max_body_bytes"].default.default,
        "cells": options["max_cells"].default.default,
        "queued_tokens": options["max_queued_tokens"].default.default,
        "cache_bytes": options["cache_bytes"].default.default,
        "timeout_s": options["timeout"].default.default,
    }
    assert Limits(**stated) == Limits()


@pytest.mark.parametrize("wrong", [{"cells": 0}, {"timeout_s": float("inf")}, {"bodybytes": 1}])
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Limits(**wrong)
