"""The endpoint's soaks on a small scale: each finds nothing, and would tell what it finds."""

from __future__ import annotations

import socket
from pathlib import Path

import drain_endpoint
import fuzz_endpoint
import fuzz_grpc
import fuzz_requests
import numpy as np
import overload
import pytest
from fuzz_connection import Answer
from fuzz_probe import Probe
from steady_clients import is_listening

from cellfoundry_bench.open_loop import Answer as Offer
from cellfoundry_bench.open_loop import Offered
from cellfoundry_serving.engines.base import Engine


def test_fuzzed_requests_find_nothing(tmp_path: Path) -> None:
    result = fuzz_endpoint.soak(tmp_path, requests=300, seed=5)
    assert result["findings"] == []
    assert result["answers"] >= 300
    assert result["by_kind_and_status"]["good"].keys() == {"200"}


def test_fuzzed_calls_find_nothing(tmp_path: Path) -> None:
    result = fuzz_grpc.soak(tmp_path, calls=300, seed=5)
    assert result["findings"] == []
    assert result["by_call_and_code"].keys() >= {"ModelInfer OK", "ModelInfer INVALID_ARGUMENT"}


def test_a_request_is_decided_by_its_seed_and_number(tmp_path: Path) -> None:
    right = fuzz_endpoint.right_requests({"paths": {"/v2": {"get": {}}}}, tmp_path)
    made = [fuzz_requests.probe(1, number, right) for number in range(500)]
    again = [fuzz_requests.probe(1, number, right) for number in range(500)]
    assert [sent.pieces for sent in made] == [sent.pieces for sent in again]
    assert {sent.kind for sent in made} >= set(fuzz_requests.KINDS) - {"large"}


@pytest.mark.parametrize(
    ("status", "body", "finding"),
    [
        (500, b'{"error": "It failed."}', "status 500"),
        (400, b'{"error": "No file /tmp/x."}', "tells b'/tmp/'"),
        (200, b"Traceback (most recent call last)", "tells b'Traceback'"),
        (400, b"Bad Request", "another form"),
        (400, b'{"error": "a", "path": 1}', "another form"),
        (400, b'{"error": "It is wrong."}', None),
    ],
)
def test_what_should_not_be_answered_is_a_finding(status: int, body: bytes, finding: str | None) -> None:
    run = fuzz_endpoint.Run()
    fuzz_endpoint.check(
        run, 7, Probe("routes", ()), Answer(status, {"content-type": "text/plain"}, body), Engine
    )  # type: ignore[arg-type]
    assert len(run.findings) == (finding is not None)
    assert finding is None or (finding in run.findings[0] and "request 7" in run.findings[0])


def test_sigterm_and_new_versions_lose_nothing(tmp_path: Path) -> None:
    result = drain_endpoint.soak(tmp_path, rounds=1, reloads=2, seed=1)
    assert result["accepted_and_lost"] == 0
    sent = result["requests_by_when_they_were_sent"]
    for answered in ("accepted, answered", "gRPC, answered"):
        assert sent[answered] >= 5 * drain_endpoint.CLIENTS / 2  # half of the clients ask over gRPC
    assert result["hot_reloads"]["versions_that_answered"] >= 2


def test_a_port_is_open_until_it_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert is_listening(port)
    assert not is_listening(port)


def test_overload_is_refused_and_told(tmp_path: Path) -> None:
    """Nothing is asked of the times here."""
    result = overload.soak(tmp_path, seconds=1, width=32, depth=1)
    assert result["bars"]["answers are 200 or 429"]
    assert result["overload"]["answers"].keys() == {"200", "429"}
    assert result["nominal"]["answers"].keys() == {"200"}


def test_latencies_are_told_by_status() -> None:
    answers = [Offer(0.0, 0.010, 200), Offer(0.5, 0.030, 200), Offer(1.0, 0.001, 429)]
    facts = overload.facts(Offered(2.0, answers))
    assert facts["answers"] == {"200": 2, "429": 1}
    assert facts["latency_ms_of_200"]["p50"] == 20.0
    assert facts["latency_ms_of_429"]["p100"] == 1.0
    assert np.isclose(facts["answered_per_s"], 2 / 1.001, atol=0.1)
