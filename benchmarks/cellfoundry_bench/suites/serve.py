"""The live endpoint on loopback, loaded by a process of its own.

What the endpoint itself costs is seen with an engine that computes nothing; the model's own speed is the other
suites' matter. Requests are Open Inference Protocol V2 with binary tensors over kept-alive connections.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import torch

from cellfoundry_bench.load_generator import HOST, Load, generate
from cellfoundry_bench.measure import Comparison, seconds
from cellfoundry_bench.real_cells import real_cells
from cellfoundry_bench.results import Curve, Row, SuiteResult
from cellfoundry_data.batch import CellBatch
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_model.presets import PRESETS
from cellfoundry_serving.client import infer_body
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.server import running
from cellfoundry_serving.endpoint.service import MODEL_NAME
from cellfoundry_serving.endpoint.v2 import HEADER_LENGTH
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine

WIDTH = 256
CLIENTS = 8
NO_CACHE = Limits(cache_bytes=0)  # every request carries the same cell
BODY_ENTRIES = 3000  # 8 bytes each: a body of 24 kB


class NoEngine(Engine):
    """Answers zeros at once, so that what is left is the endpoint."""

    name: ClassVar[str] = "none"

    def __init__(self, n_genes: int) -> None:
        info = {"weights_sha256": "0", "vocabulary_sha256": "0"}
        super().__init__([f"gene{index}" for index in range(n_genes)], WIDTH // 4, info, "computes nothing")

    def encode(self, batch: CellBatch, **conventions: Any) -> npt.NDArray[np.float32]:
        """Zeros, (cells, 256)."""
        return np.zeros((len(batch), WIDTH), np.float32)

    def shape(self, output: str, pool: str) -> tuple[int, ...]:
        """Shape of one cell's result."""
        return (WIDTH,)


def run() -> SuiteResult:
    """Overhead with an engine that computes nothing, then `tiny` on real cells."""
    rows, curve = overhead_rows(requests=2000)
    return SuiteResult([*rows, model_row(real_cells(48))], [curve])


def overhead_rows(requests: int) -> tuple[list[Row], Curve]:
    """Latency at 1 client, requests per second at 8, and latency over the number of clients."""
    genes = np.arange(BODY_ENTRIES, dtype=np.int32)
    cell = CellBatch(
        np.array([0, BODY_ENTRIES]), genes, np.ones(BODY_ENTRIES, np.float32), np.zeros(1, np.int64)
    )
    request = infer_request(cell)
    with running(NoEngine(n_genes=BODY_ENTRIES), limits=NO_CACHE) as url:
        loads = {clients: _load(request, url, clients, requests // clients) for clients in (1, 2, 4, 8)}
    p50, p99 = (
        {clients: _milliseconds(load, percent) for clients, load in loads.items()} for percent in (50, 99)
    )
    note = f"V2 binary, {len(request):,} bytes a request, engine that computes nothing"
    rows = [
        Row("protocol overhead, p50 at 1 client", p50[1], "ms", bar=1.0, bar_is="at most", note=note),
        Row("protocol overhead, p99 at 1 client", p99[1], "ms", note=note),
        Row("closed loop, 8 clients", loads[8].per_second, "requests/s", bar=1000.0, note=note),
        Row("closed loop, 8 clients, p99", p99[8], "ms", note=note),
    ]
    lines = {
        name: [(float(clients), value) for clients, value in values.items()]
        for name, values in (("p50", p50), ("p99", p99))
    }
    return rows, Curve("latency over concurrent clients, closed loop", "clients", "ms", lines)


def model_row(cells: CellBatch, rounds: int = 3) -> Row:
    """`tiny` behind the endpoint, 8 clients with one real cell a request, against the engine on one batch.

    All requests carry the same cell, the one of median length, and the peer's batch is as many copies of it.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model_dir = Path(folder) / "model"
        save_model(CellModel(PRESETS["tiny"]), Vocabulary.named("scfoundation").genes, model_dir, {})
        engine = open_engine(model_dir, "torch")
    typical = int(np.argsort(np.diff(cells.indptr))[len(cells) // 2])
    request = infer_request(cells.select(np.array([typical])))
    copies = cells.select(np.full(len(cells), typical))
    timed = Comparison([], [])
    with running(engine, limits=NO_CACHE) as url:
        for _ in range(rounds):
            timed.ours.append(_load(request, url, CLIENTS, len(cells) // CLIENTS).wall_s)
            timed.peer.append(seconds(lambda: engine.encode(copies)))
    return timed.rate_row(
        f"tiny, {CLIENTS} clients, one cell a request",
        len(cells),
        "cells/s",
        "the same engine on one batch",
        note=f"{len(cells)} requests a round, float32, {torch.get_num_threads()} threads",
    )


def infer_request(cells: CellBatch) -> bytes:
    """A whole HTTP request: POST .../infer with CSR cells as binary tensors, binary answer asked for."""
    body, header_length = infer_body(cells, {})
    head = (
        f"POST /v2/models/{MODEL_NAME}/infer HTTP/1.1\r\nHost: {HOST}\r\n"
        f"{HEADER_LENGTH}: {header_length}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _load(request: bytes, url: str, clients: int, requests_per_client: int) -> Load:
    """One run of the generator; an answer other than 200 would make its numbers meaningless."""
    port = urlsplit(url).port
    assert port is not None
    load = generate(request, port, clients, requests_per_client)
    if load.refused:
        raise RuntimeError(f"the endpoint refused {load.refused} requests of the benchmark")
    return load


def _milliseconds(load: Load, percent: float) -> float:
    """A percentile of the answered requests' latency."""
    return float(np.percentile(load.seconds, percent)) * 1e3
