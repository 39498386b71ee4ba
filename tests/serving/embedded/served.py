"""``cellfoundry serve`` in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = "from cellfoundry.cli.main import run; run()"
ANY_PORTS = ("--port", "0", "--grpc-port", "0")


@dataclass
class Served:
    """A running command, its addresses (gRPC's as its clients take it) and where its log goes."""

    process: subprocess.Popen[str]
    url: str
    grpc: str
    log: Path


@contextmanager
def served(
    model: Path, log: Path, *options: Any, environment: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """Ready inside; killed at the end, unless it has ended by then."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "serve", "--model", model, *ANY_PORTS, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=os.environ | (environment or {}),
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Serving on http://127.0.0.1:"), log.read_text()
        url, _, grpc = line.split()[2:5]
        yield Served(process, url, grpc.removeprefix("grpc://"), log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
