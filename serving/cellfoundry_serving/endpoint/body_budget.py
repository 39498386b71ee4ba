"""Bytes of all bodies in hand, which are bounded together: any one of them may be large, but not all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellfoundry_serving.endpoint.errors import RequestError


class BodyBudget:
    """What requests hold of ``max_bytes``; used inside one event loop.

    Attributes:
        bytes: held now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes

    @contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """Yields ``hold``, called with all bytes of the request so far, which are given back at the end.

        It raises RequestError 429 where others have taken the room; one that is alone always has it.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            others = self.bytes - held
            if size <= held:
                return
            if others and others + size > self._max_bytes:
                raise RequestError(
                    "Other requests' bodies fill the memory for them; try again later.",
                    429,
                    {"Retry-After": "1"},
                )
            self.bytes, held = others + size, size

        try:
            yield hold
        finally:
            self.bytes -= held


class BodyGate:
    """ASGI middleware that counts bodies: a declared one when it is first asked for, another as it arrives."""

    def __init__(self, app: ASGIApp, budget: BodyBudget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; asking for its body raises RequestError where that has no room."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        arrived = 0
        with self._budget.request() as hold:

            async def counted() -> Message:
                nonlocal arrived
                hold(int(length) if length.isdigit() else 0)
                message = await receive()
                arrived += len(message.get("body", b""))
                hold(arrived)
                return message

            await self._app(scope, counted, send)
