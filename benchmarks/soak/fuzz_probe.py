"""What a fuzzed request is: bytes, and what may be expected after them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Headers = dict[str, str]


@dataclass(frozen=True)
class Probe:
    """What is sent.

    Attributes:
        kind: of request.
        pieces: bytes, written one after another.
        method: of HTTP.
        whole: one answer comes and the connection goes on; else any number, and the connection is given up.
        cells: those that a right request asks for, for its answer to be compared; None for a fuzzed one.
    """

    kind: str
    pieces: tuple[bytes, ...]
    method: str = "POST"
    whole: bool = True
    cells: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


def posted(kind: str, path: str, body: bytes, headers: Headers | None = None) -> Probe:
    """A request in one piece."""
    return Probe(kind, (request("POST", path, body, headers or {}),))


def request(method: str, path: str, body: bytes, headers: Headers) -> bytes:
    """The bytes of a request; ``path`` and headers as latin-1."""
    lines = [f"{method} {path} HTTP/1.1", "Host: fuzz"]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace") + body


def open_ended(sent: bytes) -> Probe:
    """Frames after which nobody knows where the next request begins."""
    return Probe("framing", (sent,), whole=False)
