"""What becomes of a finished request's record: a line of the log and, where configured, a trace."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from cellfoundry_serving.endpoint.logs import access_logger
from cellfoundry_serving.endpoint.request_record import RequestRecord
from cellfoundry_serving.errors import ServingError

if TYPE_CHECKING:
    from cellfoundry_serving.endpoint.traces import Traces

QUIET = frozenset(
    {
        "/v2/health/live",
        "/v2/health/ready",
        "/metrics",
        "inference.GRPCInferenceService/ServerLive",
        "inference.GRPCInferenceService/ServerReady",
    }
)
"""Routes that a machine asks every few seconds: no traces, and lines at DEBUG only."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Journal:
    """Takes the records of all protocols.

    Args:
        traces: None sends none.
    """

    def __init__(self, traces: Traces | None = None) -> None:
        self._traces = traces

    def write(self, record: RequestRecord) -> None:
        """The request has been answered."""
        ended = time.perf_counter()
        quiet = record.route in QUIET
        log_request(record, ended, logging.DEBUG if quiet else logging.INFO)
        if self._traces and not quiet:
            self._traces.write(record, ended)

    def close(self) -> None:
        """Sends what has not been sent."""
        if self._traces:
            self._traces.close()


def open_journal() -> Journal:
    """With traces where the environment names a collector, by OpenTelemetry's standard variables.

    ServingError where it asks for another protocol than OTLP/HTTP, or the extra is not installed.
    """
    named = [name for name in ENDPOINTS if os.environ.get(name)]
    if not named:
        return Journal()
    protocols = [name for name in PROTOCOLS if os.environ.get(name)]
    if protocols and os.environ[protocols[0]] != "http/protobuf":
        raise ServingError(
            f"{protocols[0]} is {os.environ[protocols[0]]!r}, but traces go out as http/protobuf; change or unset it."
        )
    try:
        from cellfoundry_serving.endpoint.traces import Traces
    except ImportError as error:
        raise ServingError(
            f"{named[0]} asks for traces, which need the extra: pip install 'cellfoundry[otel]', or unset it."
        ) from error
    return Journal(Traces())


def log_request(record: RequestRecord, ended: float, level: int) -> None:
    """One line about a request; never its body, query, keys or what stands in its path."""
    if not access_logger.isEnabledFor(level):
        return
    facts = {
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "ms": round((ended - record.began) * 1000, 2),
        "cells": record.cells,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "client": record.client,
    }
    access_logger.log(level, "request", extra={"facts": facts})
