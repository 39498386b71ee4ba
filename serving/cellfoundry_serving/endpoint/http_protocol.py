"""uvicorn's HTTP/1.1 connection with what it lacks: a bound on heads, our errors' form, word of a lost client."""

from __future__ import annotations

import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 * 1024  # of a request's head, a chunk's head or the trailers


class HttpProtocol(HttpToolsProtocol):
    """Ends a connection whose client sends a head without end, which the parser would keep in memory.

    Counts the bytes since the last head, piece of a body or end of a request: the parser tells of each when it has it.
    """

    _pending = 0
    _running: RequestResponseCycle | None = None

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        self._pending += len(data)
        super().data_received(data)
        if self._pending > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._end(431, f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self._pending = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body is there."""
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        self._pending = 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the request in hand; uvicorn tells the last one that came, which may wait behind it."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP."""
        self._end(400, "This is no HTTP/1.1 request that can be read.")

    def _end(self, status: int, sentence: str) -> None:
        body = json.dumps({"error": sentence}).encode()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
