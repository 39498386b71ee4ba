"""A connection whose client takes the server's bytes late, as over a slow network or on a busy machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LEAST_BUFFER = 4096  # bytes the kernel keeps for a reader that does not read; the rest stays at the sender's


class SlowLink:
    """One connection to HOST:PORT, which a client reaches at ``address``.

    Attributes:
        open: while it is set the client gets the server's bytes; the server always gets the client's.
    """

    def __init__(self, to: str) -> None:
        self.open = threading.Event()
        self.open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._server = socket.socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LEAST_BUFFER)
        host, port = to.rsplit(":", 1)
        self._server.connect((host, int(port)))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        """Passes on until both sides have ended."""
        with self._listener, self._server, self._listener.accept()[0] as client:
            up = threading.Thread(target=_pass_on, args=(client, self._server))
            up.start()
            _pass_on(self._server, client, self.open)
            up.join()


def _pass_on(source: socket.socket, sink: socket.socket, may: threading.Event | None = None) -> None:
    with suppress(OSError):  # either side has left
        while content := source.recv(1024):
            if may:
                may.wait()
            sink.sendall(content)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextmanager
def slow_link(to: str) -> Iterator[SlowLink]:
    """Runs inside, in threads; its client must have left by the end."""
    link = SlowLink(to)
    thread = threading.Thread(target=link.run)
    thread.start()
    try:
        yield link
    finally:
        link.open.set()
        thread.join()
