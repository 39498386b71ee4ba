"""What the endpoint refuses, when, and that refusing frees what was taken."""

from __future__ import annotations

import inspect
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from odd_engines import GatedEngine, until
from pydantic import ValidationError
from scraped import scraped

from cellfoundry.cli.serve import serve as serve_command
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.server import running

CELL = {"genes": ["A", "B"], "counts": [1, 2]}  # 4 tokens


def post(url: str, cells: int = 1) -> httpx.Response:
    return httpx.post(f"{url}/v1/embed", json={"cells": [CELL] * cells}, timeout=30)


def refused_by_its_head(url: str) -> bytes:
    """The answer to a request whose body never comes."""
    with socket.create_connection(urlsplit(url).netloc.split(":"), timeout=20) as client:  # type: ignore[arg-type]
        client.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        return client.recv(100)


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
            until(lambda: scraped(url, "cellfoundry_queued_tokens") == 8)
            refused = post(url, 2)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused_by_its_head(url).startswith(b"HTTP/1.1 429")
            engine.gate.set()
            assert waiting.recv(100).startswith(b"HTTP/1.1 200")
        assert running_now.result().json()["embedding"] == [[3.0]]
        assert post(url).status_code == 200


def test_an_answer_that_takes_too_long_is_504_and_its_cells_are_not_computed() -> None:
    engine = GatedEngine()
    with running(engine, limits=Limits(timeout_s=0.3, cache_bytes=0)) as url:
        first, second = post(url), post(url, 2)
        assert [first.status_code, second.status_code] == [504, 504]
        assert "longer than 0.3 s" in first.json()["error"]
        engine.gate.set()
        until(lambda: post(url).status_code == 200)
    assert 2 not in engine.calls  # the first was running already; the second had left the queue


def test_a_client_that_left_while_it_waited_costs_nothing() -> None:
    engine = GatedEngine()
    with running(engine, limits=Limits(cache_bytes=0)) as url, ThreadPoolExecutor(1) as pool:
        running_now = pool.submit(post, url)
        assert engine.entered.wait(20)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/embed", json={"cells": [CELL] * 2}, timeout=0.5)
        until(lambda: scraped(url, "cellfoundry_requests_total", status="499") == 1)
        assert scraped(url, "cellfoundry_queued_tokens") == 0
        engine.gate.set()
        assert running_now.result().status_code == 200
    assert engine.calls == [1]


def test_a_body_that_does_not_arrive_is_408() -> None:
    with running(GatedEngine(), limits=Limits(timeout_s=0.3)) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
            client.settimeout(20)
            assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_bodies_of_all_requests_share_a_limit() -> None:
    engine = GatedEngine()
    engine.gate.set()
    head = b"POST /v1/embed HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
    with running(engine, limits=Limits(bodies_bytes=1000)) as url:

        def client() -> socket.socket:
            return socket.create_connection(urlsplit(url).netloc.split(":"), timeout=20)  # type: ignore[arg-type]

        with client() as declared:
            declared.sendall(head + b"Content-Length: 990\r\n\r\n")
            assert b"100 Continue" in declared.recv(1000)  # held from here on
            refused = post(url)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "bodies fill the memory" in refused.json()["error"]
        until(lambda: post(url).status_code == 200)
        with client() as chunked:
            chunked.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            assert b"100 Continue" in chunked.recv(1000)
            assert post(url).status_code == 200
            chunked.sendall(b"3e0\r\n" + b" " * 992 + b"\r\n")
            until(lambda: post(url).status_code == 429)
        until(lambda: post(url).status_code == 200)
        assert httpx.post(f"{url}/v1/embed", content=b" " * 2000).status_code == 400  # alone it may be larger


def test_the_command_states_the_defaults_of_the_limits() -> None:
    options = inspect.signature(serve_command).parameters
    stated = {
        "body_bytes": options["max_body_bytes"].default.default,
        "bodies_bytes": options["max_bodies_bytes"].default.default,
        "json_bytes": options["max_json_bytes"].default.default,
        "cells": options["max_cells"].default.default,
        "queued_tokens": options["max_queued_tokens"].default.default,
        "wait_s": options["max_wait"].default.default,
        "cache_bytes": options["cache_bytes"].default.default,
        "timeout_s": options["timeout"].default.default,
    }
    assert Limits(**stated) == Limits()


@pytest.mark.parametrize("wrong", [{"cells": 0}, {"timeout_s": float("inf")}, {"bodybytes": 1}])
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Limits(**wrong)
