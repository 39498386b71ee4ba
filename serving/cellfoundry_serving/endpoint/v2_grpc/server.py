"""The gRPC server: in the event loop of the HTTP server, around the same service."""

from __future__ import annotations

import asyncio

import grpc

from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.v2_grpc.calls import make_calls
from cellfoundry_serving.endpoint.v2_grpc.handlers import Handlers
from cellfoundry_serving.errors import ServingError

MAX_CALLS = 256
"""At once, streams among them, each with one message on its way; more are refused as RESOURCE_EXHAUSTED."""
TAKE_ARRIVED_S = 0.1
"""For calls that have arrived and wait to be taken, one by one: gRPC would end them as CANCELLED, as if their
clients had, and we refuse them as UNAVAILABLE, after which clients try again elsewhere."""


class GrpcServer:
    """Answers between ``start`` and ``stop``, in the event loop that binds it.

    Args:
        service: open while it answers.
        keys: without them anyone who reaches it may ask.
        allow_load: clients may load and unload models.
        host: an IP address, already allowed.
        port: 0 takes a free one.

    Attributes:
        address: HOST:PORT as gRPC's clients take it, once it is bound.
    """

    address: str

    def __init__(
        self, service: Service, keys: ApiKeys | None, allow_load: bool, host: str, port: int
    ) -> None:
        self._service = service
        self._keys = keys
        self._allow_load = allow_load
        self._host = f"[{host}]" if ":" in host else host
        self._port = port

    def bind(self) -> None:
        """Takes the port; ServingError where another has it."""
        self._draining = asyncio.Event()
        calls = make_calls(self._service, self._allow_load)
        self._handlers = Handlers(calls, self._service, self._keys, self._draining)
        options = (
            ("grpc.max_receive_message_length", self._service.limits.body_bytes),
            ("grpc.so_reuseport", 0),  # by default two servers share a port, and each gets half of the calls
        )
        self._server = grpc.aio.server(
            handlers=[self._handlers.generic()], options=options, maximum_concurrent_rpcs=MAX_CALLS
        )
        try:
            port = self._server.add_insecure_port(f"{self._host}:{self._port}")
        except RuntimeError as error:
            raise ServingError(
                f"Port {self._port} on {self._host} is not free; choose another with --grpc-port."
            ) from error
        self.address = f"{self._host}:{port}"

    async def start(self) -> None:
        """Answers from here on."""
        await self._server.start()

    async def stop(self) -> None:
        """Refuses new calls, and returns when those in hand are answered or their time is over."""
        self._draining.set()
        await asyncio.sleep(TAKE_ARRIVED_S)
        # gRPC waits until clients have heard that it stops, so they have all that was sent before. What is sent after
        # that a slow client may lose: gRPC closes a connection right behind its last answer, and the kernel's reset
        # throws away what was not taken yet (1 of 35 answers of 230 kB beside four busy processes).
        most_s = self._service.limits.timeout_s
        try:
            await asyncio.wait_for(self._handlers.idle.wait(), most_s)
        except TimeoutError:
            most_s = 0
        await self._server.stop(most_s)
