"""What is noted of a request in hand, by whatever protocol it came: its id, its size, and the times of its stages.

The record is in a context variable, so all that works for the request finds it, and log lines carry its id.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

ID_NAME = "x-request-id"
"""Of the header, or key of the metadata, in which a client sends an id and gets one back."""
TOLD = (ID_NAME, "traceparent", "tracestate")
"""Headers, or keys of metadata, that a record begins with."""
GRPC = "gRPC"
ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Stage(NamedTuple):
    """A part of a request's time, in seconds of ``time.perf_counter``; without an end it lasts to the request's."""

    name: str
    began: float
    ended: float | None
    facts: Mapping[str, int]


@dataclass(slots=True)
class RequestRecord:
    """One request.

    Attributes:
        id: the client's, or a random one.
        told: what the client sent under the names of ``TOLD``.
        began: when its head had arrived, in seconds of ``time.perf_counter``.
        began_ns: the same in nanoseconds since 1970.
        client: address that it came from.
        method: of HTTP, or "gRPC".
        route: template of the path, without what the client filled in, or SERVICE/METHOD; None where no route fits.
        status: of the answer, of gRPC the code's name; None before it.
        cells: asked for.
        bytes_in: length of the body.
        bytes_out: length of the answer's body.
        stages: in the order of their ends.
    """

    id: str
    told: Mapping[str, str]
    began: float
    began_ns: int
    client: str | None = None
    method: str = ""
    route: str | None = None
    status: int | str | None = None
    cells: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    stages: list[Stage] = field(default_factory=list)

    def note(self, name: str, began: float, ended: float | None = None, **facts: int) -> None:
        """A stage has ended, or the last one has begun."""
        self.stages.append(Stage(name, began, ended, facts))


in_hand: ContextVar[RequestRecord | None] = ContextVar("in_hand", default=None)
"""The request that the current task works for."""


def begin_record(told: Mapping[str, str]) -> RequestRecord:
    """The record of a request that has arrived, from here on ``in_hand``.

    Its id is the client's where that is short and harmless in a log, else a random one.
    """
    sent = told.get(ID_NAME, "")
    request_id = sent if ID.fullmatch(sent) else secrets.token_hex(16)
    record = RequestRecord(request_id, told, time.perf_counter(), time.time_ns())
    in_hand.set(record)
    return record
