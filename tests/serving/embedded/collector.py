"""A collector of traces: takes OTLP over HTTP, as any backend of OpenTelemetry does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """What has arrived.

    Attributes:
        url: to be named in OTEL_EXPORTER_OTLP_ENDPOINT.
        services: names of those that sent something.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.services: set[str] = set()
        self._spans: list[Span] = []

    def take(self, body: bytes) -> None:
        for of_service in ExportTraceServiceRequest.FromString(body).resource_spans:
            facts = {each.key: each.value.string_value for each in of_service.resource.attributes}
            self.services.add(facts["service.name"])
            self._spans.extend(span for scope in of_service.scope_spans for span in scope.spans)

    def requests(self) -> dict[str, tuple[Span, list[Span]]]:
        """Each request's span and those within it in order of their beginning, by the request's id."""
        return {
            str(facts(span)["cellfoundry.request_id"]): (span, self._within(span))
            for span in self._spans
            if span.kind == Span.SPAN_KIND_SERVER
        }

    def _within(self, parent: Span) -> list[Span]:
        children = [span for span in self._spans if span.parent_span_id == parent.span_id]
        return sorted(children, key=lambda span: span.start_time_unix_nano)


def facts(span: Span) -> dict[str, str | int]:
    """Attributes of a span."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(server.server_port)
        threading.Thread(target=server.serve_forever).start()
        try:
            yield collector
        finally:
            server.shutdown()
