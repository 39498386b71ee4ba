"""The serve suite on few requests: every row and curve, and that a refusal makes no number."""

from __future__ import annotations

import math

import pytest

from cellfoundry_bench.open_loop import offer
from cellfoundry_bench.real_cells import real_cells
from cellfoundry_bench.serving.no_engine import BODY_ENTRIES, NO_CACHE, NoEngine, cell_of_24_kb, infer_request
from cellfoundry_bench.serving.protocol import (
    LOADS,
    capacity_of,
    grpc_row,
    load,
    offered_curve,
    overhead_rows,
    port_of,
    ray_serve_row,
)
from cellfoundry_bench.serving.saturation import saturation_row
from cellfoundry_serving.endpoint.server import running


def test_the_closed_loop_measures_the_live_endpoint() -> None:
    """From a process of its own: every request answered, none refused, and the rows it becomes."""
    rows, curve = overhead_rows(requests=16)
    assert all(row.value is not None and row.value > 0 for row in rows)
    assert capacity_of(rows) == rows[2].value
    assert [len(line) for line in curve.lines.values()] == [4, 4]
    p50, p99 = (dict(curve.lines[name]) for name in ("p50", "p99"))
    assert all(p50[clients] <= p99[clients] for clients in p50)


def test_the_open_loop_counts_from_when_a_request_was_due() -> None:
    """One connection that cannot keep up: the later a request was due, the longer it has waited."""
    with running(NoEngine(n_genes=BODY_ENTRIES), limits=NO_CACHE) as url:
        seen = offer(infer_request(cell_of_24_kb()), port_of(url), rate=20_000, seconds=0.02, connections=1)
    assert (len(seen.answers), seen.count(200)) == (400, 400)
    ends = [answer.due_s + answer.latency_s for answer in seen.answers]
    assert ends == sorted(ends)
    assert seen.answers[-1].latency_s > seen.answers[0].latency_s
    assert seen.latency(99) > seen.latency(50) > 0
    assert math.isnan(seen.latency(50, status=429))


def test_latency_over_offered_load() -> None:
    curve = offered_curve(capacity=50, seconds=0.3)
    assert [rate for rate, _ in curve.lines["p50"]] == [share * 50 for share in LOADS]
    assert all(
        low <= high for (_, low), (_, high) in zip(curve.lines["p50"], curve.lines["p99"], strict=True)
    )


def test_a_client_of_grpc_is_timed() -> None:
    row = grpc_row(calls=4)
    assert row.value is not None
    assert 0 < row.value < 1000


def test_ray_serve_alone_answers_the_same_requests(ray_local: None) -> None:
    row = ray_serve_row(requests=16, rounds=1)
    assert (row.peer, row.bar) == ("Ray Serve alone", 5.0)
    assert row.ratio is not None
    assert row.ratio > 0


def test_a_model_at_saturation_against_its_engine() -> None:
    row = saturation_row("tiny", real_cells(8), rounds=1)
    assert row.ratio is not None
    assert row.ratio > 0


def test_refused_requests_make_no_number() -> None:
    with (
        running(NoEngine(n_genes=4)) as url,
        pytest.raises(RuntimeError, match="refused 2 requests of the benchmark"),
    ):
        load(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", url, 2, 1)
