from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client import Client
from cellfoundry_serving.endpoint.server import listening, running, serve
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError

SERVE = "import sys; from cellfoundry_serving.endpoint.server import serve; serve([sys.argv[1]], port=0)"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2"])
def test_others_can_ask_only_with_keys(model_dir: Path, host: str) -> None:
    with pytest.raises(ServingError, match=r"not loopback.*--api-keys FILE"):
        serve([str(model_dir)], host=host)
    with socket.create_server(("0.0.0.0", 0)) as free:
        port = free.getsockname()[1]
    if host == "0.0.0.0":
        with listening(host, port, public=True) as listener:
            assert listener.getsockname() == (host, port)


def test_a_host_is_an_address(model_dir: Path) -> None:
    with pytest.raises(ServingError, match=r"'example\.org' is no IP address"):
        serve([str(model_dir)], host="example.org")


def test_a_port_in_use_is_one_sentence(model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"Port {port} on 127.0.0.1 is not free"):
            serve([str(model_dir)], port=port)


class ColdEngine(Engine):
    """Fails on whatever it is given."""

    name = "torch"

    def shape(self, output: str, pool: str) -> tuple[int, ...]:
        return (1,)

    def encode(self, batch: CellBatch, **conventions: Any) -> np.ndarray:
        raise RuntimeError("no memory")


def test_a_model_that_cannot_compute_is_never_ready() -> None:
    with (
        pytest.raises(ServingError, match="the model failed on its first cells"),
        running(ColdEngine(("A",), 1, {"weights_sha256": "0", "vocabulary_sha256": "0"}, "for tests")),
    ):
        pass


def named(cells: CellBatch, row: int, engine: Engine) -> dict[str, Any]:
    entries = slice(cells.indptr[row], cells.indptr[row + 1])
    genes = [engine.vocab_genes[gene] for gene in cells.gene_ids[entries]]
    return {"genes": genes, "counts": cells.counts[entries].tolist()}


def test_sigterm_answers_what_was_accepted(model_dir: Path, engine: Engine, cells: CellBatch) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(model_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[2]
        assert line.startswith("Serving on http://127.0.0.1:")
        body = json.dumps({"cells": [named(cells, row, engine) for row in range(9)] * 50})
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        connection.request("POST", "/v1/embed", body)
        with Client(url) as other:
            # Sent later and answered: so the server has the first request in hand.
            assert other.models() == ["cellfoundry"]
        process.send_signal(signal.SIGTERM)
        answer = json.loads(connection.getresponse().read())
        assert process.wait(30) == 0
        got = np.array(answer["embedding"][-9:], dtype=np.float32)
        np.testing.assert_allclose(got, engine.encode(cells), atol=1e-4, rtol=0)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_sigterm_answers_what_had_come_but_was_not_read(model_dir: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(model_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2].removeprefix("http://")
        kept, new = (http.client.HTTPConnection(address, timeout=60) for _ in range(2))
        kept.request("GET", "/v2/health/live")
        kept.getresponse().read()
        process.send_signal(signal.SIGSTOP)  # the kernel still takes connections and bytes
        for connection in (kept, new):
            connection.request("POST", "/v1/embed", b'{"genes": ["A1BG"], "counts": [1]}')
        process.send_signal(signal.SIGTERM)
        time.sleep(
            0.3
        )  # the server looks for signals ten times a second: it will before it looks for requests
        process.send_signal(signal.SIGCONT)
        for connection in (kept, new):
            assert connection.getresponse().status == 200
            connection.close()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
