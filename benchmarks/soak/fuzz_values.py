"""Values that break readers of requests: numbers, texts and documents, drawn at random."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

INTEGERS = (
    -(2**63) - 1, -(2**63), -(2**31) - 1, -1, 0, 1, 2, 3, 400, 4096, 4097, 2**31 - 1, 2**31, 2**32, 2**53 + 1,
    2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400,
)  # fmt: skip
NUMBERS = (0.5, -0.0, 1e-45, 1e-320, 3.4e38, 3.5e38, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", "x", "t4", "f1", "a-9", "t1e9", "all", "INT64", "FP64", "BYTES", "\x00", "\n", "\ud800", "é" * 40, "%s%n",
    "{{7*7}}", "../../x", "A1BG", "\u0661\u0662", "9" * 5000, "x" * 100_000,
)  # fmt: skip
PATH_TEXTS = (
    "", "%00", "%2e%2e%2f", "..%2f..%2fx", "%ff%fe", "%", "%zz", "a%0d%0aX: y", "\u0661", "-1", "0", "1", "01",
    "9" * 400, "cellfoundry", "cellfoundry%20", "x" * 3000, ";", "*", "{model}", "1/ready/infer", "//", ".", "%c0%ae",
)  # fmt: skip


def nasty(rng: random.Random) -> Any:
    """A JSON value of any type, seldom the one that is asked for."""
    return rng.choice(
        (
            lambda: rng.choice(INTEGERS),
            lambda: rng.choice(NUMBERS),
            lambda: rng.choice(TEXTS),
            lambda: rng.choice((None, True, False)),
            lambda: [nasty(rng) for _ in range(rng.randrange(4))],
            lambda: {rng.choice(TEXTS[:12]): nasty(rng) for _ in range(rng.randrange(3))},
            lambda: nested(rng.choice((2, 33, 65, 200))),
            lambda: [rng.choice((0, 1, 2**40, -1, 0.5))] * rng.choice((1, 7, 5000)),
        )
    )()


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def changed(rng: random.Random, document: Any) -> Any:
    """A copy with one to four of its parts replaced, left out, doubled, or put into a list."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 4)):
        part = document
        while True:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(part[key], dict | list) and part[key] and rng.random() < 0.7:
                part = part[key]
                continue
            change(rng, part, key)
            break
    return document


def change(rng: random.Random, part: Any, key: Any) -> None:
    """Changes one part of a list or an object."""
    kind = rng.choice(("replace", "replace", "replace", "leave out", "double", "wrap", "add"))
    if kind == "replace":
        part[key] = nasty(rng)
    elif kind == "leave out":
        del part[key]
    elif kind == "wrap":
        part[key] = [part[key]]
    elif isinstance(part, list):
        part.insert(rng.randint(0, len(part)), copy.deepcopy(part[key]) if kind == "double" else nasty(rng))
    else:
        part[rng.choice(("x", "id", "version", "model", "pool", "target", "parameters"))] = nasty(rng)


def changed_bytes(rng: random.Random, body: bytes) -> bytes:
    """Bits flipped, or pieces cut, doubled, put in or overwritten."""
    data = bytearray(body)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(data) + 1)
        kind = rng.choice(("flip", "flip", "flip", "cut", "end", "insert", "overwrite", "double"))
        length = rng.choice((1, 2, 4, 8, 64))
        if kind == "flip" and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[place : place + length]
        elif kind == "end":
            del data[place:]
        elif kind == "insert":
            data[place:place] = rng.randbytes(length)
        elif kind == "overwrite":
            data[place : place + length] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * length
        elif kind == "double":
            data[place:place] = data[place : place + length]
    return bytes(data)


def odd_json(rng: random.Random, body: bytes) -> bytes:
    """JSON text that parsers disagree about, or that is none."""
    kind = rng.randrange(13)
    if kind == 0:
        depth = rng.choice((100, 900, 990, 5000, 200_000))
        opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        return opening * depth + (b"1" + closing * depth if rng.random() < 0.5 else b"")
    if kind == 1:
        return body[:-1] + b', "cells": 1, "cells": [], "genes": [], "inputs": [], "inputs": 3}'
    if kind == 2:
        return body.replace(
            b"1", rng.choice((b"1e999", b"-1e999", b"NaN", b"Infinity", b"9" * 5000, b"1" * 4000)), 2
        )
    if kind == 3:
        return body.replace(
            b'"', rng.choice((b'"\xff', b'"\xed\xa0\x80', b'"\\ud800', b'"\\u0000', b'"\xc0\xaf')), 3
        )
    if kind == 4:
        return rng.choice(
            (b"\xef\xbb\xbf" + body, body.decode().encode("utf-16"), body.decode().encode("utf-32"))
        )
    if kind == 5:
        return rng.choice((b"", b" ", b"null", b"[]", b'""', b"0", b"{}", b"{", b"\x00", b"[" + body + b"]"))
    if kind == 6:
        return b'{"cells": [' + b",".join([rng.choice((b"[]", b"{}", b"1", b'""'))] * 20_000) + b"]}"
    if kind == 7:
        return b'{"genes": ["' + b"A" * rng.choice((10, 1_000_000)) + b'"], "counts": [1]}'
    if kind == 8:
        return b" " * rng.choice((10, 1_000_000)) + body
    if kind == 9:
        depth = rng.randrange(900, 1000)  # around the deepest that the parser takes
        place = rng.choice((b'"id"', b'"name"', b'"pool"', b'"counts"'))
        return body[:-1] + b", " + place + b": " + b"[" * depth + b"]" * depth + b"}"
    if kind == 10:
        names = json.dumps([f"g{number}" for number in range(3000)]).encode()
        return b'{"genes": ' + names + b', "counts": [' + b"1," * 2999 + b"1]}"
    return changed_bytes(rng, body)
