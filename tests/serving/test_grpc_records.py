"""gRPC's calls have ids, log lines and traces like HTTP's requests, and its readiness fails when the server drains."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
import tritonclient.grpc as triton
from collector import collecting, facts
from grpc_client import METHOD, MODEL, copies, inputs, refused, request_of, service
from odd_engines import BrokenEngine, GatedEngine
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from tritonclient.utils import InferenceServerException

from cellfoundry_serving.endpoint.journal import open_journal
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.logs import JsonFormatter
from cellfoundry_serving.endpoint.server import running_with_grpc
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import OpenedSource
from cellfoundry_serving.engines.base import Engine

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
INFER = "inference.GRPCInferenceService/ModelInfer"


def open_engine() -> GatedEngine:
    engine = GatedEngine()
    engine.gate.set()
    return engine


def test_a_call_gets_its_id_back_and_has_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    with (
        caplog.at_level(logging.INFO, "cellfoundry_serving"),
        running_with_grpc(service(open_engine())) as (_, address),
        grpc.insecure_channel(address) as channel,
    ):
        infer = channel.unary_unary(f"{METHOD}ModelInfer")
        request = request_of(copies(2)).SerializeToString()
        answer, call = infer.with_call(request, metadata=[("x-request-id", "seven")])
        error = refused(lambda: infer(b"\xff", metadata=[("x-request-id", "bad one")]))
        with triton.InferenceServerClient(address) as client:
            assert client.is_server_ready()
    assert ("x-request-id", "seven") in [tuple(pair) for pair in call.trailing_metadata()]
    random_id = dict(error.trailing_metadata())["x-request-id"]
    first, second = (json.loads(line) for line in caplog.text.splitlines())
    for name in ("time", "ms", "logger", "message"):
        assert first.pop(name) is not None
    assert first == {
        "level": "INFO",
        "request_id": "seven",
        "method": "gRPC",
        "route": INFER,
        "status": "OK",
        "cells": 2,
        "bytes_in": len(request),
        "bytes_out": len(answer),
        "client": "127.0.0.1",
    }
    assert (second["status"], second["request_id"]) == ("INVALID_ARGUMENT", random_id)
    assert random_id != "bad one"


@contextmanager
def traced(engine: Engine) -> Iterator[triton.InferenceServerClient]:
    """A client of a server that sends traces."""
    of_engine = Service([OpenedSource(engine)], Limits(cache_bytes=0), open_journal())
    with running_with_grpc(of_engine) as (_, address), triton.InferenceServerClient(address) as client:
        yield client


def test_calls_are_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with traced(open_engine()) as client:
            client.infer(MODEL, inputs(copies(2)), headers={"x-request-id": "good", **parent})
        with (
            traced(BrokenEngine(RuntimeError("/secret/model"))) as client,
            pytest.raises(InferenceServerException, match="The server failed on this request"),
        ):
            client.infer(MODEL, inputs(copies(2)), headers={"x-request-id": "bad"})
    span, stages = collector.requests()["good"]
    assert span.name == INFER
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert [stage.name for stage in stages] == ["queue", "engine", "answer"]
    assert facts(span) == {
        "rpc.system.name": "grpc",
        "rpc.method": INFER,
        "rpc.response.status_code": "OK",
        "client.address": "127.0.0.1",
        "cellfoundry.request_id": "good",
        "cellfoundry.cells": 2,
    }
    failing, _ = collector.requests()["bad"]
    assert failing.status.code == Status.STATUS_CODE_ERROR


def test_readiness_fails_first() -> None:
    draining = service(open_engine())
    with running_with_grpc(draining) as (_, address), triton.InferenceServerClient(address) as client:
        assert client.is_server_ready()
        draining.draining = True
        assert not client.is_server_ready()
        assert client.is_server_live()
        assert len(client.infer(MODEL, inputs(copies(2))).as_numpy("embedding")) == 2
