"""Clients that ask again and again over raw sockets, and note when each request was sent and what became of it."""

from __future__ import annotations

import http.client
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from soak_server import HOST

PATIENCE_S = 120.0


@dataclass
class Asked:
    """One request.

    Attributes:
        sent_at: when its last byte was written to an established connection, ``time.monotonic``.
        status: of its whole answer; None where none came.
        headers: of the answer, lower case.
        body: of the answer.
    """

    sent_at: float
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Client(threading.Thread):
    """Sends its requests in turn until it is told to stop or nobody listens any more.

    Args:
        port: of the endpoint.
        requests: whole ones, in bytes.
        keeps: whether a connection is used again.
        done: takes each request when it has been answered or lost.
    """

    def __init__(self, port: int, requests: list[bytes], keeps: bool, done: Callable[[Asked], None]) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._requests = requests
        self._keeps = keeps
        self._done = done
        self._stop_asking = threading.Event()

    def stop(self) -> None:
        """Asks nothing more."""
        self._stop_asking.set()

    def run(self) -> None:
        """As the class says."""
        connection: socket.socket | None = None
        for request in itertools.cycle(self._requests):
            if self._stop_asking.is_set():
                break
            try:
                if connection is None:
                    connection = socket.create_connection((HOST, self._port), timeout=PATIENCE_S)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except ConnectionRefusedError:
                break
            except ConnectionError:  # the listener was closed while the connection was being made
                continue
            if not self._ask(connection, request) or not self._keeps:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _ask(self, connection: socket.socket, request: bytes) -> bool:
        """Sends one request and reads its answer; whether the connection can be used again."""
        try:
            connection.sendall(request)
        except ConnectionError:
            return False  # never sent
        asked = Asked(time.monotonic())
        try:
            read_into(asked, connection)
        except (OSError, http.client.HTTPException):
            self._done(asked)
            return False
        self._done(asked)
        return asked.headers.get("connection") != "close"


def read_into(asked: Asked, connection: socket.socket) -> None:
    """Reads one answer; OSError or HTTPException where it does not come whole."""
    answer = http.client.HTTPResponse(connection, method="POST")
    try:
        answer.begin()
        body = answer.read()
    finally:
        answer.close()
    asked.status, asked.body = answer.status, body
    asked.headers = {name.lower(): value for name, value in answer.getheaders()}


class Asking(Protocol):
    """A client in a thread of its own, of whatever protocol."""

    def start(self) -> None:
        """Begins to ask."""

    def stop(self) -> None:
        """Asks nothing more."""

    def join(self, timeout: float | None = None) -> None:
        """Waits for the end of its last request."""


@contextmanager
def asking(clients: Sequence[Asking]) -> Iterator[None]:
    """All clients ask inside; none of them is in the middle of a request afterwards."""
    for client in clients:
        client.start()
    try:
        yield
    finally:
        for client in clients:
            client.stop()
        for client in clients:
            client.join(PATIENCE_S)


def is_listening(port: int) -> bool:
    """Whether a socket of this machine listens on the port, as the kernel says: connecting would disturb it."""
    ours = f":{port:04X}"
    with Path("/proc/net/tcp").open() as table:
        return any(line.split()[1].endswith(ours) and line.split()[3] == "0A" for line in table)


def listens_until(port: int, poll_s: float = 0.0005) -> float:
    """Waits for the port's closing; the last moment at which it was surely open, ``time.monotonic``."""
    deadline = time.monotonic() + PATIENCE_S
    open_at = time.monotonic()
    while True:
        now = time.monotonic()
        if not is_listening(port):
            return open_at
        open_at = now
        assert now < deadline, "the port stays open"
        time.sleep(poll_s)
