"""OpenTelemetry spans of finished requests: one for the request, within the client's trace, and one for each stage.

They are made when the request has ended, from the times in its record, so nothing of OpenTelemetry is in the way of a
request that waits. Importing this needs the extra ``otel``.
"""

from __future__ import annotations

import threading
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cellfoundry_serving.endpoint.request_record import GRPC, RequestRecord

FAILURES = frozenset({"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
FLUSH_S = 5.0
"""How long a server that stops tries to reach its collector."""


class Traces:
    """Sends spans over OTLP/HTTP to where the standard variables of the environment say."""

    def __init__(self) -> None:
        ours = {"service.name": "cellfoundry", "service.version": version("cellfoundry")}
        # The environment has the last word, above all OTEL_SERVICE_NAME.
        resource = Resource.create(ours).merge(OTELResourceDetector().detect())
        self._exporter = OTLPSpanExporter()
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(__name__)
        self._context = TraceContextTextMapPropagator()

    def write(self, record: RequestRecord, ended: float) -> None:
        """Hands a request's spans to a thread that sends them; ``ended`` as the record's times."""

        def ns(seconds: float) -> int:
            return record.began_ns + round((seconds - record.began) * 1e9)

        span = self._tracer.start_span(
            span_name(record),
            self._context.extract(record.told),
            SpanKind.SERVER,
            attributes=attributes(record),
            start_time=record.began_ns,
        )
        if is_failure(record.status):
            span.set_status(StatusCode.ERROR)
        within = set_span_in_context(span)
        for stage in record.stages:
            facts = {f"cellfoundry.{name}": value for name, value in stage.facts.items()}
            part = self._tracer.start_span(stage.name, within, attributes=facts, start_time=ns(stage.began))
            part.end(ns(ended if stage.ended is None else stage.ended))
        span.end(ns(ended))

    def close(self) -> None:
        """Sends what is left; tries nothing again after ``FLUSH_S``."""
        giving_up = threading.Timer(FLUSH_S, self._exporter.shutdown)
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()


def span_name(record: RequestRecord) -> str:
    """As OpenTelemetry's conventions have it."""
    if record.method == GRPC:
        return record.route or GRPC
    return f"{record.method} {record.route or ''}".strip()


def is_failure(status: int | str | None) -> bool:
    """Whether the server could not do what it should, by the status of HTTP or gRPC."""
    return status in FAILURES if isinstance(status, str) else status is None or status >= 500


def attributes(record: RequestRecord) -> dict[str, str | int]:
    """Facts of the request, under the names of OpenTelemetry's conventions where it has one."""
    if record.method == GRPC:
        of_protocol = {
            "rpc.system.name": "grpc",
            "rpc.method": record.route,
            "rpc.response.status_code": record.status,
        }
    else:
        of_protocol = {
            "http.request.method": record.method,
            "http.route": record.route,
            "http.response.status_code": record.status,
            "http.request.body.size": record.bytes_in,
            "http.response.body.size": record.bytes_out,
        }
    known = of_protocol | {
        "client.address": record.client,
        "cellfoundry.request_id": record.id,
        "cellfoundry.cells": record.cells,
    }
    return {name: value for name, value in known.items() if value is not None}
