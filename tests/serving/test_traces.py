"""Traces arrive at a collector that the environment names, and nothing is loaded or sent without one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from collector import Collector, collecting, facts
from odd_engines import BrokenEngine, GatedEngine, until
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from scraped import scraped
from served import served

from cellfoundry_serving.endpoint import traces
from cellfoundry_serving.endpoint.journal import open_journal
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.server import running_service
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import OpenedSource
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector


def embed(url: str, request_id: str, cells: int = 1, **headers: str) -> httpx.Response:
    body = {"cells": [{"genes": ["A", "B"], "counts": [1, 2]}] * cells}
    return httpx.post(
        f"{url}/v1/embed", json=body, headers={"X-Request-Id": request_id, **headers}, timeout=30
    )


def service(engine: Engine) -> Service:
    return Service([OpenedSource(engine)], Limits(cache_bytes=0), open_journal())


def assert_follow_each_other(parent: Span, children: list[Span]) -> None:
    times = [parent.start_time_unix_nano]
    for span in children:
        assert span.trace_id == parent.trace_id
        times += [span.start_time_unix_nano, span.end_time_unix_nano]
    times.append(parent.end_time_unix_nano)
    assert times == sorted(times)


def test_requests_that_share_a_batch_have_a_trace_each_within_their_clients(collector: Collector) -> None:
    engine = GatedEngine()
    with running_service(service(engine)) as url, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(embed, url, "first")]
        assert engine.entered.wait(20)
        answers.append(pool.submit(embed, url, "second", traceparent=f"00-{TRACE}-{PARENT}-01"))
        answers.append(pool.submit(embed, url, "third", 2))
        until(lambda: scraped(url, "cellfoundry_queued_tokens") == 12)
        engine.gate.set()
        assert [answer.result().status_code for answer in answers] == [200] * 3
    assert collector.services == {"cellfoundry"}
    requests = collector.requests()
    assert set(requests) == {"first", "second", "third"}
    for span, stages in requests.values():
        assert span.name == "POST /v1/embed"
        assert [stage.name for stage in stages] == ["read", "queue", "engine", "answer"]
        assert_follow_each_other(span, stages)
    second, second_stages = requests["second"]
    third, third_stages = requests["third"]
    assert (second.trace_id.hex(), second.parent_span_id.hex()) == (TRACE, PARENT)
    assert third.trace_id.hex() != TRACE
    for stages in (second_stages, third_stages):
        assert facts(stages[2]) == {"cellfoundry.batch_tokens": 12, "cellfoundry.batch_cells": 3}
        assert stages[2].start_time_unix_nano >= requests["first"][1][2].end_time_unix_nano
    begins = [stages[2].start_time_unix_nano for stages in (second_stages, third_stages)]
    assert abs(begins[0] - begins[1]) < 1e6  # each request reads the clock for itself


def test_a_failure_is_marked_and_probes_leave_no_trace(collector: Collector) -> None:
    with running_service(service(BrokenEngine(RuntimeError("not this one")))) as url:
        assert embed(url, "failing", 5).status_code == 500
        assert embed(url, "unsampled", traceparent=f"00-{TRACE}-{PARENT}-00").status_code == 500
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics"):
            httpx.get(url + path, headers={"X-Request-Id": "probe"})
        assert httpx.get(f"{url}/secret?secret=1", headers={"X-Request-Id": "lost"}).status_code == 404
    requests = collector.requests()
    assert set(requests) == {"failing", "lost"}
    failing, stages = requests["failing"]
    assert failing.status.code == Status.STATUS_CODE_ERROR
    assert [stage.name for stage in stages] == ["read", "queue", "engine"]
    assert facts(failing) == {
        "http.request.method": "POST",
        "http.route": "/v1/embed",
        "http.response.status_code": 500,
        "http.request.body.size": len('{"cells":[]}') + 5 * len('{"genes":["A","B"],"counts":[1,2]}') + 4,
        "http.response.body.size": len('{"error":"The server failed on this request; its log says why."}'),
        "client.address": "127.0.0.1",
        "cellfoundry.request_id": "failing",
        "cellfoundry.cells": 5,
    }
    assert requests["lost"][0].status.code == Status.STATUS_CODE_UNSET
    assert b"secret" not in requests["lost"][0].SerializeToString()


def test_the_command_sends_what_is_left_before_it_ends(model_dir: Path, tmp_path: Path) -> None:
    with collecting() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces",
            "OTEL_SERVICE_NAME": "ours",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
        }
        with served(model_dir, tmp_path / "log", environment=environment) as command:
            body = {"genes": ["A1BG"], "counts": [3]}
            sent = httpx.post(f"{command.url}/v1/embed", json=body)
            assert not collector.requests()
            command.process.send_signal(signal.SIGTERM)
            assert command.process.wait(20) == 0
        assert collector.services == {"ours"}
        assert list(collector.requests()) == [sent.headers["x-request-id"]]


def test_a_collector_that_is_gone_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(traces, "FLUSH_S", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    engine = GatedEngine()
    engine.gate.set()
    with running_service(service(engine)) as url:
        assert embed(url, "lost").status_code == 200
    assert "while exporting spans batch" in caplog.text


def test_what_is_not_installed_or_not_spoken_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(
        ServingError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc', but traces go out as http"
    ):
        open_journal()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.delitem(sys.modules, traces.__name__)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(
        ServingError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT asks .*pip install 'cellfoundry\[otel\]'"
    ):
        open_journal()


def test_without_a_collector_nothing_that_sends_is_loaded() -> None:
    code = (
        "import sys; import cellfoundry_serving.endpoint.server; "
        "from cellfoundry_serving.endpoint.journal import open_journal; open_journal(); "
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
