"""One fuzzed request for every number: a seed and that number alone decide what is sent, so it can be replayed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from urllib.parse import quote

import numpy as np
from fuzz_bodies import (
    ARROW,
    HDF5,
    Right,
    native_json,
    sample,
    scfoundation,
    v2_body,
    v2_json,
    with_tensors,
    wrong_v2,
)
from fuzz_frames import framed
from fuzz_h5ad import wrong_h5ad
from fuzz_probe import Headers, Probe, open_ended, posted, request
from fuzz_values import PATH_TEXTS, TEXTS, changed, changed_bytes, odd_json

INFER = "/v2/models/cellfoundry/infer"
ROUTES = (
    "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/models/cellfoundry",
    "/v2/models/cellfoundry/config", "/v2/models/cellfoundry/ready", "/v2/models/cellfoundry/stats",
    "/v2/models/cellfoundry/versions/1", INFER, "/v2/repository/index", "/v2/repository/models/cellfoundry/load",
    "/v2/repository/models/cellfoundry/unload", "/v1/vocabulary", "/v1/embed", "/v1/results/x.npy",
    "/inference/xtrimogene", "/metrics", "/openapi.json", "/",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "CONNECT")
H5AD_EVERY = 2000  # requests: each costs a process of the endpoint's, and seconds


def probe(seed: int, number: int, right: Right) -> Probe:
    """The request of a number."""
    rng = random.Random(f"{seed}/{number}")
    if number % H5AD_EVERY == H5AD_EVERY // 2:
        return posted("h5ad", "/v1/embed", wrong_h5ad(rng, right.h5ad), {"Content-Type": HDF5})
    kind = rng.choices(tuple(KINDS), [weight for weight, _ in KINDS.values()])[0]
    return KINDS[kind][1](rng, right)


def good(rng: random.Random, right: Right) -> Probe:
    """The same cells each time: the same bits must come back."""
    body, headers = v2_body(right)
    return Probe(
        "good", (request("POST", INFER, body, headers),), cells=(right.indptr, right.gene_ids, right.counts)
    )


def good_new(rng: random.Random, right: Right) -> Probe:
    """Cells that were never asked for."""
    lengths = [rng.randint(1, 60) for _ in range(rng.randint(1, 3))]
    indptr = np.cumsum([0, *lengths], dtype="<i8")
    gene_ids = np.concatenate([sorted(rng.sample(range(len(right.genes)), length)) for length in lengths])
    counts = np.array([rng.randint(1, 200) for _ in gene_ids], "<f4")
    cells = Right(indptr, gene_ids.astype("<i4"), counts, right.genes, b"", b"", {})
    body, headers = v2_body(cells)
    sent = (cells.indptr, cells.gene_ids, cells.counts)
    return Probe("good, new cells", (request("POST", INFER, body, headers),), cells=sent)


def v2_binary(rng: random.Random, right: Right) -> Probe:
    """Tensors in bytes."""
    body, headers = wrong_v2(rng, right)
    return posted("V2 binary", INFER, body, headers)


def v2_text(rng: random.Random, right: Right) -> Probe:
    """Tensors in JSON."""
    return posted("V2 JSON", INFER, json.dumps(changed(rng, v2_json(right))).encode())


def native(rng: random.Random, right: Right) -> Probe:
    """Our own JSON."""
    return posted("native JSON", "/v1/embed", json.dumps(changed(rng, native_json(right))).encode())


def json_text(rng: random.Random, right: Right) -> Probe:
    """JSON that is odd as a text."""
    path, document = rng.choice(
        (
            ("/v1/embed", native_json(right)),
            (INFER, v2_json(right)),
            ("/inference/xtrimogene", scfoundation(rng, right)),
        )
    )
    return posted("odd JSON", path, odd_json(rng, json.dumps(document).encode()))


def public_form(rng: random.Random, right: Right) -> Probe:
    """The public scFoundation API's request."""
    document = scfoundation(rng, right)
    if rng.random() < 0.8:
        document = changed(rng, document)
    return posted("scFoundation", "/inference/xtrimogene", json.dumps(document).encode())


def arrow_stream(rng: random.Random, right: Right) -> Probe:
    """An Arrow stream with wrong bits."""
    headers = {"Content-Type": ARROW, "Accept": rng.choice((ARROW, "*/*"))}
    return posted("Arrow", "/v1/embed", changed_bytes(rng, right.arrow), headers)


def described(rng: random.Random, right: Right) -> Probe:
    """Any route of the OpenAPI page, with parameters and a body of its schemas."""
    path, methods = rng.choice(list(right.openapi["paths"].items()))
    method, route = rng.choice(list(methods.items()))
    query = []
    for parameter in route.get("parameters", ()):
        value = str(sample(rng, parameter["schema"]))
        text = quote(value.encode("utf-8", "replace")[:2000], safe="")
        if parameter["in"] == "path":
            is_known = rng.random() < 0.6
            text = {"model": "cellfoundry", "version": "1"}.get(parameter["name"], text) if is_known else text
            path = path.replace(f"{{{parameter['name']}}}", text)
        elif rng.random() < 0.5:
            query.append(f"{parameter['name']}={text}")
    body, headers = b"", {}
    content = route.get("requestBody", {}).get("content", {})
    if content:
        media_type, of = rng.choice(list(content.items()))
        headers["Content-Type"] = rng.choice((media_type, media_type, "text/plain"))
        binary = of["schema"].get("format") == "binary"
        body = changed_bytes(rng, right.arrow) if binary else json.dumps(sample(rng, of["schema"])).encode()
        if media_type == HDF5:  # those have their own kind
            headers["Content-Type"] = ARROW
    target = path + ("?" + "&".join(query) if query else "")
    return Probe("OpenAPI", (request(method.upper(), target, body, headers),), method.upper())


def route(rng: random.Random, right: Right) -> Probe:
    """A path that is nearly one of ours, any method."""
    path = rng.choice(ROUTES)
    parts = path.split("/")
    for _ in range(rng.randrange(3)):
        parts[rng.randrange(1, len(parts))] = rng.choice(PATH_TEXTS)
    query = rng.choice(("", "", "?model=x", "?version=" + rng.choice(PATH_TEXTS), "?%00=%ff&&=&model"))
    method = rng.choice(METHODS[:-1])
    body = rng.choice((b"", b"{}", b'{"parameters": {"config": "{}"}}'))
    return Probe("routes", (request(method, "/".join(parts) + query, body, {}),), method)


def headers_of(rng: random.Random, right: Right) -> Probe:
    """A right body under odd headers."""
    body = json.dumps(native_json(right)).encode()
    headers: Headers = {}
    names = (
        "Content-Type", "Accept", "Content-Encoding", "Inference-Header-Content-Length", "Authorization",
        "B-Authorization", "Expect", "Upgrade", "Connection", "Range", "If-None-Match", "Cookie", "Origin", "Forwarded",
        "X-Forwarded-For", "X-Request-Id", "traceparent", "X-HTTP-Method-Override", "TE", "Accept-Encoding",
    )  # fmt: skip
    values = (
        "application/json; charset=utf-16", ARROW, ARROW + ";q=0", "gzip", "100-continue", "101-no", "websocket", "h2c",
        "Upgrade", "close", "keep-alive, TE", "bytes=0-1", "Bearer", "Bearer x", "Basic " + "é" * 50, "\xff\xfe",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a" * 3000, "\t", "", "127.0.0.1, ::1",
    )  # fmt: skip
    for _ in range(rng.randint(1, 4)):
        headers[rng.choice(names)] = rng.choice(values)
    whole = "Upgrade" not in headers and "close" not in headers.values()
    return Probe("headers", (request("POST", "/v1/embed", body, headers),), whole=whole)


def large(rng: random.Random, right: Right) -> Probe:
    """Megabytes, and what claims to be more."""
    kind = rng.randrange(5)
    if kind == 0:
        return open_ended(
            b"POST /v1/embed HTTP/1.1\r\nHost: fuzz\r\nContent-Length: %d\r\n\r\n{"
            % rng.choice((2**27, 2**40))
        )
    if kind == 1:
        item = rng.choice((b"[]", b"{}", b"1", b'"A1BG"', b"[[[]]]", b"null", b"1e5"))
        return posted(
            "large", "/v1/embed", b'{"genes": [' + b",".join([item] * 300_000) + b'], "counts": []}'
        )
    if kind == 2:
        cells = 4096 + rng.randrange(2)
        offsets = np.arange(cells + 1, dtype="<i8")
        made = Right(offsets, np.zeros(cells, "<i4"), np.ones(cells, "<f4"), right.genes, b"", b"", {})
        body, headers = v2_body(made)
        return posted("large", INFER, body, headers)
    if kind == 3:
        body, headers = with_tensors({"inputs": [{"name": "x" * 2_000_000}]}, [])
        return posted("large", INFER, body, headers)
    name = rng.choice(TEXTS[:8])
    return posted(
        "large", "/v1/embed", json.dumps({name: ["A1BG"] * 200_000, "counts": [1] * 200_000}).encode()
    )


KINDS: dict[str, tuple[int, Callable[[random.Random, Right], Probe]]] = {
    "good": (40, good),
    "good, new cells": (40, good_new),
    "V2 binary": (240, v2_binary),
    "V2 JSON": (90, v2_text),
    "native JSON": (90, native),
    "odd JSON": (90, json_text),
    "scFoundation": (60, public_form),
    "Arrow": (140, arrow_stream),
    "OpenAPI": (80, described),
    "routes": (60, route),
    "headers": (40, headers_of),
    "framing": (100, framed),
    "large": (3, large),
}
"""How often each kind comes."""
