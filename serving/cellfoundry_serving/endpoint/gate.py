"""The first code of ours that sees a request: asks for an API key and counts the answer by status."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.metrics import Metrics

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Probes of an orchestrator carry no key and learn nothing."""
RESULTS_PATH = "/v1/results/"
"""What lies under it has a random name that only the client with the key was told; it fetches that without."""


class Gate:
    """ASGI middleware; a class of its own because Starlette's for functions hides that a client has left."""

    def __init__(self, app: ASGIApp, metrics: Metrics, keys: ApiKeys | None) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 401."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            app = self._app if self._admits(scope) else no_key
            await app(scope, receive, note_status)
        finally:
            self._metrics.requests[status] += 1

    def _admits(self, scope: Scope) -> bool:
        path = scope["path"]
        if self._keys is None or path in OPEN_PATHS or path.startswith(RESULTS_PATH):
            return True
        return self._keys.allow(Headers(scope=scope))


no_key = JSONResponse(
    {"error": "An API key is needed: send it as 'Authorization: Bearer KEY'."},
    status_code=401,
    headers={"WWW-Authenticate": "Bearer"},
)
