"""A real Ray head with token authentication, as a process of its own, and the command line as its user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

TOKEN = "a-token-that-only-these-tests-know-0123456789"
READY_WITHIN_S = 180  # 8 s on a machine with nothing else to do
COMMAND_WITHIN_S = 240
ENTRYPOINT = "Running entrypoint for job "
SEND = """
import json, pathlib, sys, tempfile
from cellfoundry.cluster.connection import Cluster
cluster = Cluster()
for job, line in json.loads(sys.argv[1]).items():
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "file").touch()
        cluster.submit(job, line, pathlib.Path(folder), None, {})
"""
FOLLOW = """
import sys
from cellfoundry.cli.submit import follow_to_the_end
from cellfoundry.cluster.connection import Cluster
sys.exit(follow_to_the_end(Cluster(), sys.argv[1]))
"""


@dataclass(frozen=True)
class Head:
    """A running head: dashboard URL, and what a shell beside it has set."""

    address: str
    environment: dict[str, str]

    def cellfoundry(
        self, *arguments: str | Path, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line with the token; keywords replace variables, an empty one unsets."""
        variables = {**self.environment, **environment}
        return subprocess.run(
            [sys.executable, "-m", "cellfoundry", *map(str, arguments)],
            env={name: value for name, value in variables.items() if value},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_S,
            check=False,
        )


def send(head: Head, jobs: dict[str, str]) -> None:
    """Send shell lines as jobs of these names."""
    command = [sys.executable, "-c", SEND, json.dumps(jobs)]
    sent = subprocess.run(
        command, env=head.environment, capture_output=True, text=True, timeout=COMMAND_WITHIN_S
    )
    assert sent.returncode == 0, sent.stderr


def own_lines(log: str) -> list[str]:
    """What the job itself wrote; Ray adds lines of its own, "Running entrypoint" at any place."""
    return [line for line in log.splitlines() if "INFO job_manager" not in line and ENTRYPOINT not in line]


def free_ports(count: int) -> list[int]:
    """Ports nobody uses now, all different. They lie above the range that Ray gives to its workers."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [bound.getsockname()[1] for bound in sockets]


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """One head for all tests of this folder; it ends with them, by its own process id."""
    gcs, dashboard, agent, client = free_ports(4)
    folder = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))  # Ray's socket names need a short path
    log = tmp_path_factory.mktemp("head") / "log"
    # A folder as HOME, so that no token file of the developer's is found.
    environment = {
        **os.environ,
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # a job that still runs would hold the end up for 30 s
    }
    options = {
        "port": gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "temp-dir": folder,
        "num-cpus": 2,
        "object-store-memory": 200_000_000,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:
        wait_for_dashboard(process, dashboard, log)
        yield Head(
            f"http://127.0.0.1:{dashboard}",
            {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"},
        )
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_dashboard(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until the dashboard's port accepts a connection."""
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the head did not come up:\n{log.read_text()}")
        time.sleep(0.1)
