"""Which clusters are spoken to, and the one sentence for each that is not."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cellfoundry.cluster.connection import Cluster, dashboard_address, exit_code, is_loopback
from cellfoundry.cluster.errors import ClusterError

from .conftest import TOKEN, Head, free_ports


@contextmanager
def server(body: str, posted: list[Any] | None = None) -> Iterator[int]:
    """A web server on loopback that answers every GET with ``body``, without asking for a token; its port.

    A job that is posted to it is accepted and noted in ``posted``.
    """

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(body)

        def do_POST(self) -> None:
            assert posted is not None
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer('{"job_id": "", "submission_id": ""}')

        def answer(self, text: str) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield web.server_port
        web.shutdown()


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def test_address_is_the_option_else_the_variables_else_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://one:8265/")
    assert dashboard_address(None) == "http://one:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://two")
    assert dashboard_address(None) == "https://two"
    assert dashboard_address("three:8265") == "http://three:8265"


def test_auto_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert dashboard_address(None) == "http://127.0.0.1:8265"


@pytest.mark.parametrize(
    "address",
    [
        "ray://host:10001",
        "os://x",
        "http://",
        "http://host:port",
        "http://u:pass@h:1",
        "u:pass@word@h:1",
    ],
)
def test_other_addresses_are_refused_without_their_password(address: str) -> None:
    with pytest.raises(ClusterError, match="is not that of a Ray dashboard") as refusal:
        dashboard_address(address)
    assert not any(secret in str(refusal.value) for secret in ("u:", "pass", "word"))


def test_only_loopback_is_this_machine() -> None:
    assert all(
        map(is_loopback, ["http://127.0.0.1:1", "http://localhost", "http://[::1]:8265", "http://127.9.9.9"])
    )
    assert not any(
        map(is_loopback, ["http://10.0.0.1:1", "http://localhost.example.org", "http://0.0.0.0:1"])
    )


def test_nothing_is_sent_to_another_machine_without_a_token() -> None:
    with pytest.raises(ClusterError, match=r"http://192\.0\.2\.1:8265 is on another machine.*--insecure"):
        Cluster("http://192.0.2.1:8265")  # an address of nobody: a packet would wait for 10 s


# 127.1 reaches this machine, but only a loopback address that is written out counts as one.
@pytest.mark.parametrize("host", ["127.1", "127.0.0.1"])
def test_a_token_is_not_sent_to_what_asks_for_none(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with (
        server('{"ray_version": "2.60.0"}') as port,
        pytest.raises(ClusterError, match="asks for no token") as refusal,
    ):
        Cluster(f"http://{host}:{port}")
    assert TOKEN not in str(refusal.value)


def test_insecure_accepts_it() -> None:
    with server('{"ray_version": "2.60.0"}') as port:
        assert Cluster(f"http://127.1:{port}", insecure=True).address == f"http://127.1:{port}"


@pytest.mark.parametrize("body", ["<html>", "[]", '{"version": 1}'])
def test_what_is_no_dashboard_is_said_to_be_none(body: str) -> None:
    with server(body) as port, pytest.raises(ClusterError, match="is not a Ray dashboard"):
        Cluster(f"http://127.0.0.1:{port}")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ClusterError, match=r"pip install 'cellfoundry\[cluster\]'"):
        Cluster("http://127.0.0.1:1")


def test_nobody_there() -> None:
    with pytest.raises(ClusterError, match=r"nothing answers at http://127\.0\.0\.1:"):
        Cluster(f"http://127.0.0.1:{free_ports(1)[0]}")


def test_a_job_is_sent_with_a_minute_to_save_when_it_is_stopped(tmp_path: Path) -> None:
    """Ray's job supervisor reads the variable and sends SIGKILL so many seconds after SIGTERM."""
    (tmp_path / "file").touch()
    posted: list[Any] = []
    with server('{"ray_version": "2.60.0"}', posted) as port:
        Cluster(f"http://127.0.0.1:{port}").submit("mine", "true", tmp_path, None, {})
    (job,) = posted
    assert (job["submission_id"], job["entrypoint"]) == ("mine", "true")
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


class Ended:
    """The two fields of a job that its exit code follows from."""

    def __init__(self, status: str, driver_exit_code: int | None) -> None:
        self.status = status
        self.driver_exit_code = driver_exit_code


@pytest.mark.parametrize(
    ("status", "code", "exit_with"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_exit_code_is_the_jobs(status: str, code: int | None, exit_with: int) -> None:
    assert exit_code(Ended(status, code)) == exit_with


def assert_refused(head: Head, *words: str, **environment: str) -> None:
    ran = head.cellfoundry("jobs", "list", **environment)
    assert (ran.returncode, ran.stdout) == (2, "")
    (sentence,) = ran.stderr.splitlines()
    assert sentence.startswith(f"error: {head.address}") or sentence.startswith("error: RAY_AUTH_MODE")
    for word in words:
        assert word in sentence
    for secret in (TOKEN, "a-wrong-token"):
        assert secret not in sentence


def test_a_wrong_token_is_refused(head: Head) -> None:
    assert_refused(head, "refuses the token", RAY_AUTH_TOKEN="a-wrong-token")


def test_a_missing_token_is_asked_for(head: Head) -> None:
    assert_refused(head, "there is no token", "RAY_AUTH_TOKEN_PATH", RAY_AUTH_TOKEN="")


def test_a_token_without_its_mode_is_asked_for(head: Head) -> None:
    assert_refused(head, "asks for a token: set RAY_AUTH_MODE=token", RAY_AUTH_MODE="")


def test_a_token_file_is_as_good(head: Head, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    ran = head.cellfoundry("jobs", "list", RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=str(file))
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_job_that_is_not_there(head: Head) -> None:
    for words in (["status"], ["logs", "--follow"], ["stop"]):
        for job in ("none-1", "../version"):
            ran = head.cellfoundry("jobs", *words, job)
            assert (ran.returncode, ran.stdout) == (2, "")
            assert f"has no job {job}" in ran.stderr
