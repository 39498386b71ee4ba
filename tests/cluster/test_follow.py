"""Watching goes on where it was when the connection to the cluster breaks."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from .conftest import COMMAND_WITHIN_S, FOLLOW, Head, own_lines, send


class Relay:
    """Passes connections on to a port of this machine, and can cut them all."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection there is; new ones are passed on again."""
        open_now, self._open = self._open, []
        for each in open_now:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source, target:
            while piece := source.recv(65536):
                target.sendall(piece)


@contextmanager
def relay_to(address: str) -> Iterator[Relay]:
    relay = Relay(urlsplit(address).port or 80)
    try:
        yield relay
    finally:
        relay.close()


def test_a_broken_connection_is_taken_up_again(head: Head, tmp_path: Path) -> None:
    go_on = tmp_path / "go_on"
    send(head, {"waits": f"echo one; until [ -e {go_on} ]; do sleep 0.1; done; echo two; exit 5"})
    with (
        relay_to(head.address) as relay,
        subprocess.Popen(
            [sys.executable, "-c", FOLLOW, "waits"],
            env={**head.environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{relay.port}"},
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line == "one\n":
                break
        relay.cut()
        go_on.touch()
        seen += process.stdout.readlines()
        assert process.wait(timeout=COMMAND_WITHIN_S) == 5
    assert own_lines("".join(seen)) == ["one", "two"]
