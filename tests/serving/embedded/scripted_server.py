"""A server that answers as a script says: late, wrongly, or not at all."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.v2 import HEADER_LENGTH

Step = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Reads a request, then does the next step of the script; the last one is repeated."""

    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            step = self.server.script[min(len(self.server.paths), len(self.server.script) - 1)]
            self.server.paths.append(self.path)
        step(self)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


class ScriptedServer(ThreadingHTTPServer):
    def __init__(self, script: tuple[Step, ...], port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script = script
        self.lock = threading.Lock()
        self.paths: list[str] = []  # of the requests so far
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that has left is no failure."""


@contextmanager
def scripted(*script: Step, port: int = 0) -> Iterator[ScriptedServer]:
    """A server of its own threads that does the steps."""
    with ScriptedServer(script, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def answer(status: int, body: bytes = b'{"error": "Come back later."}', **headers: str) -> Step:
    def step(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return step


def send(data: bytes, *, reset: bool = False) -> Step:
    """Sends ``data`` and hangs up, with a reset or in order."""

    def step(handler: Handler) -> None:
        handler.wfile.write(data)
        if reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
        handler.close_connection = True

    return step


def counted(cells: int) -> CellBatch:
    """Cells with 0, 1, 2, ... counts of one gene."""
    return CellBatch(
        np.arange(cells + 1),
        np.zeros(cells, np.int32),
        np.arange(cells, dtype=np.float32),
        np.arange(cells, dtype=np.int64),
    )


def embedding(handler: Handler, rows: int | None = None, version: str = "1") -> None:
    """Answers V2 with each cell's count, (cells, 1)."""
    header = json.loads(handler.body[: int(handler.headers[HEADER_LENGTH])])
    counts = np.frombuffer(handler.body[-header["inputs"][2]["parameters"]["binary_data_size"] :], "<f4")
    counts = counts[:rows]
    document = {"model_version": version, "outputs": [{"shape": [len(counts), 1]}]}
    head = json.dumps(document).encode()
    answer(200, head + counts.tobytes(), **{HEADER_LENGTH: str(len(head))})(handler)
