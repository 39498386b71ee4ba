"""Requests in frames that lie, in pieces, or with what proxies are tricked with."""

from __future__ import annotations

import json
import random

from fuzz_bodies import Right, native_json
from fuzz_probe import Probe, open_ended, request
from fuzz_values import changed_bytes


def framed(rng: random.Random, right: Right) -> Probe:
    """A right body in frames that lie, in pieces, or with what proxies are tricked with."""
    body = json.dumps(native_json(right)).encode()
    head = b"POST /v1/embed HTTP/1.1\r\nHost: fuzz\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    length = len(body)
    kind = rng.randrange(16)
    if kind == 0:  # one byte a chunk, every piece alone
        return Probe("framing", (chunked, *(b"1\r\n%c\r\n" % byte for byte in body[:150]), b"0\r\n\r\n"))
    if kind == 1:  # all of it one byte a chunk, at once
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        return Probe("framing", (chunked + chunks + b"0\r\n\r\n",))
    if kind == 2:
        extension = rng.choice((b";x", b";x=y", b';x="' + b"y" * 2000 + b'"', b" ;", b";" * 3000))
        return open_ended(chunked + b"%x%s\r\n%s\r\n0\r\n\r\n" % (length, extension, body))
    if kind == 3:
        size = rng.choice(
            (b"-1", b"0x10", b"", b"g", b"f" * 17, b"8000000000000000", b"+5", b" 5", b"1_0", b"1e3")
        )
        return open_ended(chunked + size + b"\r\n" + body + b"\r\n0\r\n\r\n")
    if kind == 4:  # chunks that are longer or shorter than they say
        return open_ended(
            chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (max(0, length + rng.choice((-1, 1, -50, 50))), body)
        )
    if kind == 5:
        return open_ended(chunked + b"%x\r\n" % length + body[: rng.randrange(length)])
    if kind == 6:
        said = rng.choice((0, 1, length - 1, length + 1, length + 1000))
        return open_ended(head + b"Content-Length: %d\r\n\r\n" % said + body)
    if kind == 7:
        text = rng.choice(
            (b"-1", b"+5", b"5, 5", b"5 5", b"0x5", b"", b"1e3", b"9" * 30, b"\xb2", b"5;", b"99999999999")
        )
        return open_ended(head + b"Content-Length: " + text + b"\r\n\r\n" + body)
    if kind == 8:
        other = rng.choice((0, 5, length, length + 5))
        return open_ended(head + b"Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (length, other) + body)
    if kind == 9:
        coding = rng.choice(
            (b"chunked, identity", b"identity", b"xchunked", b"chunked\r\nTransfer-Encoding: identity", b"\x0bchunked",
             b"gzip, chunked", b"CHUNKED", b"chunked;q=1")
        )  # fmt: skip
        smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: fuzz\r\n\r\n"
        mixed = b"Content-Length: %d\r\n" % length if rng.random() < 0.7 else b""
        return open_ended(head + mixed + b"Transfer-Encoding: " + coding + b"\r\n\r\n" + smuggled + body)
    if kind == 10:
        return open_ended(request("POST", "/v1/embed", body, {}) * rng.choice((2, 5, 40)))
    if kind == 11:
        line = rng.choice(
            (b"GET /", b"GET / HTTP/0.9", b"GET / HTTP/1.0", b"GET / HTTP/2.0", b"GET  /  HTTP/1.1", b"get / HTTP/1.1",
             b"GET http://u:p@x/v2 HTTP/1.1", b"CONNECT x:1 HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET /\xff HTTP/1.1",
             b"PRI * HTTP/2.0", b"\x00" * 20, b"GET ?x HTTP/1.1", b"GET //x/../../v2 HTTP/1.1", b"POST  HTTP/1.1")
        )  # fmt: skip
        return open_ended(line + b"\r\nHost: fuzz\r\n\r\n")
    if kind == 12:
        odd = rng.choice(
            (b"X : y", b" X: y", b"X\x00: y", b": y", b"X: y\rZ: w", b"X: \x00", b"X", b"X: y\r\n folded",
             b"Host: other",
             b"X" * 5000 + b": y", b"Trailer: X")
        )  # fmt: skip
        return open_ended(head + odd + b"\r\nContent-Length: %d\r\n\r\n" % length + body)
    if kind == 13:  # bare line feeds
        return open_ended(request("POST", "/v1/embed", body, {}).replace(b"\r\n", b"\n"))
    if kind == 14:
        return open_ended(changed_bytes(rng, request("POST", "/v1/embed", body, {})))
    sent = request("POST", "/v1/embed", body, {})
    places = sorted(rng.sample(range(1, len(sent)), 5))
    return Probe("framing", tuple(sent[a:b] for a, b in zip([0, *places], [*places, len(sent)], strict=True)))
