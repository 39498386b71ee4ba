"""SIGTERM: readiness fails, what comes is still answered, then the port closes, then what is in hand is answered."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from odd_engines import until
from served import Served, served

BODY = json.dumps({"genes": ["A1BG"], "counts": [3]}).encode()


@contextlib.contextmanager
def half_sent(command: Served) -> Iterator[http.client.HTTPConnection]:
    """A request that the server has in hand; the second half of ``BODY`` is still to come."""
    connection = http.client.HTTPConnection(command.url.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/v1/embed")
        connection.putheader("Content-Length", str(len(BODY)))
        connection.endheaders(BODY[:10])
        assert httpx.get(f"{command.url}/v2/health/ready").status_code == 200  # sent later and answered
        yield connection


def refused(url: str) -> bool:
    try:
        httpx.get(url)
    except httpx.TransportError:
        return True
    return False


def test_sigterm_fails_readiness_first_and_loses_no_request(model_dir: Path, tmp_path: Path) -> None:
    with served(model_dir, tmp_path / "log", "--drain-s", 3) as command, half_sent(command) as connection:
        ready = f"{command.url}/v2/health/ready"
        command.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(ready).status_code == 503)
        assert httpx.get(ready).json() == {"error": "The server is about to stop; ask another one."}
        assert httpx.get(f"{command.url}/v2/health/live").status_code == 200
        late = httpx.post(f"{command.url}/v1/embed", content=BODY)
        assert late.status_code == 200
        assert late.headers["connection"] == "close"
        until(lambda: refused(ready))
        assert command.process.poll() is None
        connection.send(BODY[10:])
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read()) == late.json()
        assert command.process.wait(20) == 0


def test_a_second_signal_ends_at_once(model_dir: Path, tmp_path: Path) -> None:
    options = ("--drain-s", 600, "--no-access-log")
    with served(model_dir, tmp_path / "log", *options) as command, half_sent(command):
        command.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{command.url}/v2/health/ready").status_code == 503)
        deadline = time.monotonic() + 20
        while command.process.poll() is None and time.monotonic() < deadline:
            command.process.send_signal(signal.SIGINT)  # those of the first half second count as the first
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.process.wait(0.1)
        assert command.process.returncode == 128 + signal.SIGINT
    assert command.log.read_text() == ""


def test_ctrl_c_waits_for_no_load_balancer(model_dir: Path, tmp_path: Path) -> None:
    with served(model_dir, tmp_path / "log", "--drain-s", 600) as command:
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(20) == 0
