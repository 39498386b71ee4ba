"""Clients that call ModelInfer over gRPC again and again, and note what became of each call."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from cellfoundry_bench.serving.grpc_load import METHOD

PATIENCE_S = 120.0
NEVER_TAKEN = ("The server is stopping", "failed to connect", "GOAWAY received")
"""How the details of UNAVAILABLE begin where the server has not worked on the call, and says so, or was not reached."""


@dataclass(frozen=True)
class Called:
    """One call.

    Attributes:
        sent_at: before it was sent, ``time.monotonic``.
        ended_at: when its answer or error was there.
        code: that it ended with.
        details: of an error.
        answer: a ModelInferResponse in bytes; None with an error.
    """

    sent_at: float
    ended_at: float
    code: grpc.StatusCode
    details: str = ""
    answer: bytes | None = None

    @property
    def never_taken(self) -> bool:
        """Whether it may be made again elsewhere without being answered twice."""
        return self.code is grpc.StatusCode.UNAVAILABLE and any(
            text.lower() in self.details.lower() for text in NEVER_TAKEN
        )


class Caller(threading.Thread):
    """Makes its calls in turn until it is told to stop or one finds no server.

    Args:
        address: HOST:PORT of gRPC.
        messages: ModelInferRequests in bytes.
        keeps: whether a connection is used again.
        done: takes each call when it has ended.
    """

    def __init__(
        self, address: str, messages: list[bytes], keeps: bool, done: Callable[[Called], None]
    ) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._messages = messages
        self._keeps = keeps
        self._done = done
        self._stop_asking = threading.Event()

    def stop(self) -> None:
        """Calls nothing more."""
        self._stop_asking.set()

    def run(self) -> None:
        """As the class says."""
        channel = self._channel()
        for message in itertools.cycle(self._messages):
            if self._stop_asking.is_set():
                break
            called = call(channel, message)
            self._done(called)
            if called.code is grpc.StatusCode.UNAVAILABLE:
                break
            if not self._keeps:
                channel.close()
                channel = self._channel()
        channel.close()

    def _channel(self) -> grpc.Channel:
        # Of its own: channels to one address would share a connection.
        return grpc.insecure_channel(self._address, options=[("grpc.use_local_subchannel_pool", 1)])


def call(channel: grpc.Channel, message: bytes) -> Called:
    """Makes one call."""
    sent_at = time.monotonic()
    try:
        answer = channel.unary_unary(METHOD)(message, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        return Called(sent_at, time.monotonic(), error.code(), error.details() or "")
    return Called(sent_at, time.monotonic(), grpc.StatusCode.OK, answer=answer)
