"""The first code of ours that sees a request: it gets an id, is asked for an API key, counted, timed and logged."""

from __future__ import annotations

import logging
import time

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellfoundry_serving.endpoint.answers import failed
from cellfoundry_serving.endpoint.api_keys import KEY_NEEDED, ApiKeys
from cellfoundry_serving.endpoint.request_record import ID_NAME, TOLD, RequestRecord, begin_record
from cellfoundry_serving.endpoint.routes_page import PAGE_PATH
from cellfoundry_serving.endpoint.service import Service

logger = logging.getLogger(__name__)

CLOSE = (b"connection", b"close")
"""Makes a client connect again before a draining server closes the connection under its next request."""
TOLD_HEADERS = frozenset(name.encode() for name in TOLD)
OPEN_PATHS = frozenset({"/", "/v2/health/live", "/v2/health/ready"})
"""Probes of an orchestrator carry no key and learn nothing, nor does the page; its script asks for a key."""
EMBEDS = "embeddings"
"""Tag of the routes whose requests are timed."""
RESULTS_PATH = "/v1/results/"
"""What lies under it has a random name that only the client with the key was told; it fetches that without."""


class Gate:
    """ASGI middleware; a class of its own because Starlette's for functions hides that a client has left."""

    def __init__(self, app: ASGIApp, service: Service, keys: ApiKeys | None, sends_ids: bool = True) -> None:
        self._app = app
        self._service = service
        self._keys = keys
        self._sends_ids = sends_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 401; with 500 where that fails."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = begin_record(told(scope))
        record.client = scope["client"][0] if scope.get("client") else None
        record.method = scope["method"]
        id_header = [(ID_NAME.encode(), record.id.encode())] if self._sends_ids else []

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                closing = [CLOSE] if self._service.draining else []
                message = {**message, "headers": [*message.get("headers", ()), *id_header, *closing]}
            else:
                record.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            app = self._app if self._admits(scope) else no_key
            await app(scope, receive, noted)
        except Exception:
            if record.status is not None:
                raise  # the server closes the connection
            logger.exception("A request failed")
            await failed(scope, receive, noted)
        finally:
            self._note_end(scope, record)

    def _note_end(self, scope: Scope, record: RequestRecord) -> None:
        if record.status is None:
            record.status = 499  # cancelled, as Ray Serve does where a client has left
        metrics = self._service.metrics
        metrics.requests.labels(str(record.status)).inc()
        route = scope.get("route")
        if isinstance(route, APIRoute):
            record.route = route.path
            if EMBEDS in route.tags and record.status == 200:
                metrics.request_seconds.labels(route.path).observe(time.perf_counter() - record.began)
        self._service.journal.write(record)

    def _admits(self, scope: Scope) -> bool:
        path = scope["path"]
        if self._keys is None or path in OPEN_PATHS or path.startswith((RESULTS_PATH, PAGE_PATH)):
            return True
        return self._keys.allow(Headers(scope=scope))


def told(scope: Scope) -> dict[str, str]:
    """What a record begins with."""
    return {
        name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in TOLD_HEADERS
    }


no_key = JSONResponse(
    {"error": KEY_NEEDED},
    status_code=401,
    headers={"WWW-Authenticate": "Bearer"},
)
