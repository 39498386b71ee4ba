"""What is no request at all: heads without end, and bytes that are not HTTP."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from odd_engines import GatedEngine
from scraped import scraped

from cellfoundry_serving.endpoint.http_protocol import MAX_HEAD_BYTES
from cellfoundry_serving.endpoint.server import running

POST = b"POST /v1/embed HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"


@pytest.fixture
def client(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as client:
        yield client


def answer(client: socket.socket) -> tuple[int, str]:
    """Status and sentence, of an answer after which the connection ends."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(4096):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"application/json" in head
    return int(head.split(b" ")[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"GET /", b"x" * 1000),
        (POST + b"X-Long: ", b"x" * 1000),
        (POST, b"X-Many: 1\r\n" * 100),
        (CHUNKED + b"2;", b"x" * 1000),
        (CHUNKED + b"0\r\nX-Long: ", b"x" * 1000),
    ],
    ids=["path", "header", "headers", "chunk extension", "trailer"],
)
def test_a_head_without_end_ends_the_connection(client: socket.socket, begin: bytes, again: bytes) -> None:
    client.sendall(begin)
    with contextlib.suppress(ConnectionError):
        for _ in range(40 * MAX_HEAD_BYTES // 1000):
            client.sendall(again)
    assert answer(client) == (431, f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /é HTTP/1.1\r\n\r\n".encode(),
    ],
)
def test_what_is_not_http_is_told_so_in_the_form_of_every_error(client: socket.socket, sent: bytes) -> None:
    client.sendall(sent)
    assert answer(client) == (400, "This is no HTTP/1.1 request that can be read.")


def test_long_heads_that_follow_each_other_are_not_added_up(client: socket.socket) -> None:
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 40_000 + b"\r\n\r\n"
    for _ in range(3):
        client.sendall(request)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_is_noticed_by_the_request_in_hand_though_another_waits_behind_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = GatedEngine()
    body = b'{"genes": ["A"], "counts": [1]}'
    request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with running(engine) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(2 * request)
            assert engine.entered.wait(20)
        deadline = time.monotonic() + 20
        while not scraped(url, "cellfoundry_requests_total", status="499"):
            assert time.monotonic() < deadline
        engine.gate.set()
    assert "Exception" not in caplog.text
