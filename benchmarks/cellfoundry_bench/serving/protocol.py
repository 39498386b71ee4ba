"""What the endpoint costs without a model: at one client, at eight beside Ray Serve alone, over the offered load."""

from __future__ import annotations

import socket
from statistics import median
from urllib.parse import urlsplit

import numpy as np

from cellfoundry_bench.load_generator import HOST, Load, generate
from cellfoundry_bench.measure import Comparison
from cellfoundry_bench.open_loop import offer
from cellfoundry_bench.peers.ray_serve_alone import ray_serve_alone
from cellfoundry_bench.results import Curve, Row
from cellfoundry_bench.serving.grpc_load import call, infer_message
from cellfoundry_bench.serving.no_engine import (
    BODY_ENTRIES,
    INFER_PATH,
    NO_CACHE,
    WIDTH,
    NoEngine,
    cell_of_24_kb,
    infer_request,
)
from cellfoundry_data.ray_cluster import ray_cluster
from cellfoundry_serving.endpoint.server import running, running_with_grpc
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import OpenedSource

CLIENTS = 8
LOADS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)  # of what eight clients get


def overhead_rows(requests: int) -> tuple[list[Row], Curve]:
    """Latency at 1 client, requests per second at 8, and latency over the number of clients."""
    request = infer_request(cell_of_24_kb())
    with running(NoEngine(n_genes=BODY_ENTRIES), limits=NO_CACHE) as url:
        loads = {clients: load(request, url, clients, requests // clients) for clients in (1, 2, 4, 8)}
    p50, p99 = (
        {clients: milliseconds(load, percent) for clients, load in loads.items()} for percent in (50, 99)
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


def grpc_row(calls: int) -> Row:
    """Latency of ModelInfer over gRPC at 1 client."""
    message = infer_message(cell_of_24_kb())
    service = Service([OpenedSource(NoEngine(n_genes=BODY_ENTRIES))], NO_CACHE)
    with running_with_grpc(service) as (_, address):
        seconds = call(message, address, calls)
    note = f"{len(message):,} bytes a call, engine that computes nothing, p99 {1e3 * np.percentile(seconds, 99):.2f} ms"
    return Row(
        "protocol overhead over gRPC, p50 at 1 client",
        1e3 * median(seconds),
        "ms",
        bar=1.0,
        bar_is="at most",
        note=note,
    )


def ray_serve_row(requests: int, rounds: int) -> Row:
    """Eight clients against the endpoint and against Ray Serve that only reads the body, in turn."""
    request = infer_request(cell_of_24_kb())
    answer = bytes(4 * WIDTH)
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    timed = Comparison([], [])
    with (
        ray_cluster(min_cpus=2),
        ray_serve_alone(port, answer, INFER_PATH),
        running(NoEngine(n_genes=BODY_ENTRIES), limits=NO_CACHE) as url,
    ):
        for _ in range(rounds):
            timed.ours.append(load(request, url, CLIENTS, requests // CLIENTS).wall_s)
            timed.peer.append(load(request, f"http://{HOST}:{port}", CLIENTS, requests // CLIENTS).wall_s)
    return timed.rate_row(
        f"closed loop, {CLIENTS} clients",
        requests,
        "requests/s",
        "Ray Serve alone",
        bar=5.0,
        note=f"{len(request):,} bytes a request; Ray Serve's one replica reads them and answers {len(answer):,} bytes",
    )


def offered_curve(capacity: float, seconds: float) -> Curve:
    """Latency over the offered load, open loop, from the instant at which a request was due."""
    request = infer_request(cell_of_24_kb())
    lines: dict[str, list[tuple[float, float]]] = {"p50": [], "p99": []}
    with running(NoEngine(n_genes=BODY_ENTRIES), limits=NO_CACHE) as url:
        for share in LOADS:
            rate = max(1.0, share * capacity)
            seen = offer(request, port_of(url), rate, seconds)
            if seen.count(200) < len(seen.answers):
                raise RuntimeError("the endpoint refused requests of the benchmark")
            for name, percent in (("p50", 50), ("p99", 99)):
                lines[name].append((rate, 1e3 * seen.latency(percent)))
    return Curve("latency over offered load, open loop", "requests/s offered", "ms", lines)


def capacity_of(rows: list[Row]) -> float:
    """Requests per second of the closed loop's row."""
    return median(row.value for row in rows if row.what == "closed loop, 8 clients" and row.value is not None)


def load(request: bytes, url: str, clients: int, requests_per_client: int) -> Load:
    """One run of the closed-loop generator; an answer other than 200 would make its numbers meaningless."""
    seen = generate(request, port_of(url), clients, requests_per_client)
    if seen.refused:
        raise RuntimeError(f"the endpoint refused {seen.refused} requests of the benchmark")
    return seen


def port_of(url: str) -> int:
    """The port of a URL that names one."""
    port = urlsplit(url).port
    assert port is not None
    return port


def milliseconds(seen: Load, percent: float) -> float:
    """A percentile of the answered requests' latency."""
    return float(np.percentile(seen.seconds, percent)) * 1e3
