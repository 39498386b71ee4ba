"""Large bodies are read and answered beside the event loop; JSON, whose reading stops it, has a lower limit."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import tritonclient.grpc as triton
from grpc_client import MODEL, copies, inputs, service
from odd_engines import GatedEngine

from cellfoundry_serving.client import infer_body
from cellfoundry_serving.endpoint import (
    arrow,
    aside,
    batcher,
    incoming,
    routes_native,
    routes_scfoundation,
    routes_v2,
    v2,
)
from cellfoundry_serving.endpoint import service as service_module
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.server import running, running_with_grpc
from cellfoundry_serving.endpoint.v2_grpc import calls, handlers

INFER = f"/v2/models/{MODEL}/infer"
CELL = {"genes": ["A", "B"], "counts": [1, 2]}
TENSORS = [
    {"name": "indptr", "datatype": "INT64", "shape": [2], "data": [0, 1]},
    {"name": "gene_ids", "datatype": "INT32", "shape": [1], "data": [0]},
    {"name": "counts", "datatype": "FP32", "shape": [1], "data": [1]},
]
TABLE = {"name": "data_numpy", "datatype": "FP32", "shape": [1, 2], "data": [[1, 2]]}


def arrow_cell(cells: int = 1) -> bytes:
    table = pa.table({"gene_ids": [[0, 1]] * cells, "counts": [[1, 2]] * cells})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def open_engine() -> GatedEngine:
    engine = GatedEngine()
    engine.gate.set()
    return engine


class Held:
    """A function that waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.entered, self.gate = threading.Event(), threading.Event()
        self._real: Callable[..., Any] = getattr(owner, name)
        monkeypatch.setattr(owner, name, self)
        monkeypatch.setattr(aside, "INLINE_BYTES", 0)  # every body is large

    def __call__(self, *arguments: Any) -> Any:
        self.entered.set()
        assert self.gate.wait(20)
        return self._real(*arguments)


@pytest.mark.parametrize(
    ("owner", "name", "path"),
    [
        (routes_native, "read_fields", "/v1/embed"),
        (routes_native, "cells_from_json", "/v1/embed"),
        (arrow, "cells_from_arrow", "/v1/embed"),
        (service_module, "cell_keys", "/v1/embed"),
        (service_module, "row_copies", "/v1/embed"),
        (routes_native, "answer", "/v1/embed"),
        (v2, "decode", INFER),
        (v2, "encode", INFER),
        (routes_scfoundation, "read_request", "/inference/xtrimogene"),
    ],
)
def test_others_are_answered_while_a_large_body_is_worked_on(
    owner: Any, name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = {"/v1/embed": CELL, INFER: {"inputs": TENSORS}, "/inference/xtrimogene": {"inputs": [TABLE]}}
    content, headers = json.dumps(documents[path]).encode(), {}
    if owner is arrow:
        content, headers = arrow_cell(), {"Content-Type": arrow.MEDIA_TYPE}
    with running(open_engine()) as url:
        held = Held(monkeypatch, owner, name)
        statuses: list[int] = []
        asking = threading.Thread(
            target=lambda: statuses.append(
                httpx.post(url + path, content=content, headers=headers, timeout=30).status_code
            )
        )
        asking.start()
        assert held.entered.wait(20)
        assert httpx.get(f"{url}/v2/health/ready", timeout=10).status_code == 200
        held.gate.set()
        asking.join()
    assert statuses == [200]


@pytest.mark.parametrize(
    ("owner", "name"), [(handlers, "parsed"), (calls, "decode"), (calls, "encode"), (handlers, "serialized")]
)
def test_others_are_answered_while_a_large_message_is_worked_on(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        running_with_grpc(service(open_engine())) as (url, address),
        triton.InferenceServerClient(address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        held = Held(monkeypatch, owner, name)
        answer = pool.submit(client.infer, MODEL, inputs(copies(1)))
        assert held.entered.wait(20)
        assert httpx.get(f"{url}/v2/health/ready", timeout=10).status_code == 200
        held.gate.set()
        assert answer.result().as_numpy("embedding").tolist() == [[3]]


def test_json_has_a_lower_limit_than_other_bodies() -> None:
    with running(open_engine(), limits=Limits(json_bytes=700)) as url:
        padded = json.dumps(CELL).encode().ljust(701)
        refused = httpx.post(f"{url}/v1/embed", content=padded)
        assert refused.status_code == 413
        assert "The JSON is larger than 700 bytes" in refused.json()["error"]
        assert httpx.post(f"{url}/v1/embed", content=padded[:700]).status_code == 200
        for path in (INFER, "/inference/xtrimogene"):
            assert httpx.post(url + path, content=padded).status_code == 413
        header = json.dumps({"inputs": TENSORS}).encode()
        lengths = [len(header.ljust(700)), 701]
        statuses = [
            httpx.post(url + INFER, content=header.ljust(length), headers={v2.HEADER_LENGTH: str(length)})
            for length in lengths
        ]
        assert [response.status_code for response in statuses] == [200, 413]
        content = arrow_cell(cells=200)
        assert len(content) > 700
        headers = {"Content-Type": arrow.MEDIA_TYPE}
        assert httpx.post(f"{url}/v1/embed", content=content, headers=headers).status_code == 200


def test_parts_are_joined_whatever_their_sizes() -> None:
    sizes = (0, 1, aside.PIECE_BYTES, 2 * aside.PIECE_BYTES + 3)
    parts = [np.arange(size, dtype=np.uint64).astype(np.uint8) for size in sizes]
    assert aside.joined_bytes(part.data for part in parts) == b"".join(part.tobytes() for part in parts)


def test_a_request_of_many_batches_and_its_answer_are_put_together_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is copied for it is copied in threads: of bodies, answers and cells that the cache keeps."""
    sizes: list[tuple[int, bool]] = []
    real = aside.aside

    async def noted(size: int, work: Callable[[], Any]) -> Any:
        loop_thread = threading.get_ident()

        def seen() -> Any:
            sizes.append((size, threading.get_ident() != loop_thread))
            return work()

        return await real(size, seen)

    for module in (incoming, batcher, service_module, routes_v2):
        monkeypatch.setattr(module, "aside", noted)
    cells = copies(80_000)  # twenty batches; the answer has 320 kB
    body, header_length = infer_body(cells, {})
    with running(open_engine(), limits=Limits(cells=len(cells))) as url:
        headers = {v2.HEADER_LENGTH: str(header_length)}
        answer = httpx.post(url + INFER, content=body, headers=headers, timeout=30)
        assert answer.status_code == 200
    large = [is_beside for size, is_beside in sizes if size > aside.INLINE_BYTES]
    assert len(large) >= 5
    assert all(large)


def test_a_long_answer_in_pieces_is_the_same_json() -> None:
    array = np.random.default_rng(0).normal(size=(5, v2.PIECE // 2 + 1)).astype(np.float32)
    array[1] = np.nan
    numbers = [None if np.isnan(number) else number for number in array.reshape(-1).tolist()]
    body, _ = v2.encode("m", 1, v2.InferRequest("1", {}, {}, False), "embedding", array)
    assert json.loads(body)["outputs"][0]["data"] == numbers
    rows = json.loads(bytes(routes_native.answer(array, "").body))["embedding"]
    assert [number for row in rows for number in row] == numbers
