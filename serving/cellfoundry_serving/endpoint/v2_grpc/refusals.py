"""What is noted of every call, and with which status and sentence it is refused."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from grpc import StatusCode

from cellfoundry_model.errors import ModelError
from cellfoundry_serving.endpoint.errors import FAILED, RequestError
from cellfoundry_serving.endpoint.request_record import GRPC, RequestRecord, begin_record
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.v2_grpc.messages import SERVICE

logger = logging.getLogger(__name__)

CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    413: StatusCode.RESOURCE_EXHAUSTED,
    429: StatusCode.RESOURCE_EXHAUSTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
"""The HTTP statuses of RequestError as gRPC has them."""
STOPPING = "The server is stopping; ask again."
EMBEDS = frozenset({"ModelInfer", "ModelStreamInfer"})
"""Calls that are timed."""


class Refusal(Exception):
    """A call that is answered with ``code`` and this sentence; ``trailing`` metadata go with it."""

    def __init__(self, code: StatusCode, sentence: str, trailing: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(sentence)
        self.code = code
        self.trailing = trailing


@contextmanager
def noted(service: Service, call: str, told: Mapping[str, str]) -> Iterator[RequestRecord]:
    """Counts, times and logs the answer made inside; an error leaves as a Refusal, a defect of ours is logged.

    A client that leaves, or whose own deadline passes, is counted as CANCELLED. ``told`` is the call's metadata.
    """
    record = begin_record(told)
    record.method, record.route = GRPC, f"{SERVICE.full_name}/{call}"
    code = StatusCode.OK
    try:
        yield record
    except asyncio.CancelledError:
        code = StatusCode.CANCELLED
        raise
    except Exception as error:
        refusal = _refusal(call, error)
        code = refusal.code
        raise refusal from error
    finally:
        record.status = code.name
        service.metrics.requests.labels(code.name).inc()
        if call in EMBEDS and code is StatusCode.OK:
            service.metrics.request_seconds.labels(f"grpc/{call}").observe(time.perf_counter() - record.began)
        service.journal.write(record)


def _refusal(call: str, error: Exception) -> Refusal:
    if isinstance(error, RequestError):
        trailing = tuple((name.lower(), value) for name, value in (error.headers or {}).items())
        return Refusal(CODES[error.status], str(error), trailing)
    if isinstance(error, ModelError):
        return Refusal(StatusCode.INVALID_ARGUMENT, str(error))
    logger.error("gRPC call %s failed", call, exc_info=error)
    return Refusal(StatusCode.INTERNAL, FAILED)
