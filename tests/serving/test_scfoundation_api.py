"""The public scFoundation API's protocol, asked as its client asks."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.app import create_app
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.results import Results
from cellfoundry_serving.endpoint.server import running, serve
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import OpenedSource
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError

PATH = "/inference/xtrimogene"
HOST = {"Host": "xtrimogene.inference.example.com"}  # the public client names a host that is not ours


def dense(cells: CellBatch, n_genes: int) -> np.ndarray:
    table = np.zeros((len(cells), n_genes), np.float32)
    table[np.repeat(np.arange(len(cells)), np.diff(cells.indptr)), cells.gene_ids] = cells.counts
    return table


def request_of(table: np.ndarray, **options: str) -> dict[str, Any]:
    defaults = {
        "input_type": "singlecell",
        "output_type": "cell",
        "pool_type": "all",
        "tgthighres": "t4",
        "pre_normalized": "F",
        "version": "0.1",
    }
    inputs: list[dict[str, Any]] = [
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [value]}
        for name, value in {**defaults, **options}.items()
    ]
    inputs.append({"name": "data_numpy", "shape": table.shape, "datatype": "FP32", "data": [table.tolist()]})
    return {"id": "test", "inputs": inputs}


def ask(url: str, body: dict[str, Any], headers: dict[str, str] = HOST) -> np.ndarray:
    """What the public client does: post, take the only element of the first output, fetch it without headers."""
    response = httpx.post(url + PATH, content=json.dumps(body), headers=headers)
    assert response.status_code == 200, response.text
    output = response.json()["outputs"][0]
    place = np.array(output["data"]).reshape(output["shape"]).tolist()[0]
    return np.load(io.BytesIO(httpx.get(place).raise_for_status().content))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool_type": "max", "tgthighres": "a5"},
        {"tgthighres": "f1", "version": "0.2"},
        {"input_type": "bulk", "pre_normalized": "F"},
        {"input_type": "bulk", "pre_normalized": "T"},
        {"pre_normalized": "T"},
        {"output_type": "gene"},
        {"output_type": "gene_batch", "tgthighres": "a1"},
    ],
    ids=str,
)
def test_the_public_client_gets_what_the_engine_computes(
    url: str, engine: Engine, cells: CellBatch, options: dict[str, str]
) -> None:
    cells = cells.select(np.arange(5))
    table = dense(cells, 400)
    conventions: dict[str, Any] = {
        "pool": options.get("pool_type", "all"),
        "target": options.get("tgthighres", "t4"),
        "output": options.get("output_type", "cell").removesuffix("_batch"),
        "input_type": options.get("input_type", "singlecell"),
        "pre_normalized": options.get("pre_normalized", "F"),
    }
    if options.get("input_type") == "bulk":
        conventions["bulk_median"] = float(np.median(table.sum(1)[table.sum(1) > 0]))
    expected = engine.encode(cells, **conventions)
    got = ask(url, request_of(table, **options))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_values_may_be_imputed_and_totals_may_be_appended(url: str, engine: Engine, cells: CellBatch) -> None:
    values = CellBatch(cells.indptr, cells.gene_ids, cells.counts / 3, cells.row_ids)
    table = dense(values, 400)
    np.testing.assert_allclose(ask(url, request_of(table)), engine.encode(values), atol=1e-4, rtol=0)
    totals = np.arange(len(cells), dtype=np.float64) + 500
    expected = engine.encode(values, pre_normalized="A", totals=totals)
    with_totals = np.column_stack([table, totals]).astype(np.float32)
    got = ask(url, request_of(with_totals, pre_normalized="A"))
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_its_header_carries_the_key_and_the_result_needs_none(engine: Engine, cells: CellBatch) -> None:
    key = "k" * 32
    body = request_of(dense(cells, 400))
    with running(engine, keys=ApiKeys([key])) as url:
        assert httpx.post(url + PATH, json=body).status_code == 401
        got = ask(url, body, {"B-Authorization": key})
        assert httpx.get(f"{url}/v1/results/x.npy").status_code == 404
    np.testing.assert_allclose(got, engine.encode(cells), atol=1e-4, rtol=0)


TABLE = np.ones((2, 400), np.float32)


def test_an_id_is_repeated_even_if_it_is_no_text(url: str) -> None:
    answer = httpx.post(url + PATH, content=json.dumps({**request_of(TABLE), "id": "half \ud800"}))
    assert answer.json()["id"] == "half \ud800"


def changed(**fields: Any) -> dict[str, Any]:
    """A request whose table has other fields."""
    body = request_of(TABLE)
    body["inputs"][-1] |= fields
    return body


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "a list 'inputs'"),
        ({"inputs": [1]}, 400, "a list 'inputs'"),
        ({"inputs": []}, 400, "needs an input 'data_numpy'"),
        (request_of(TABLE, mode="x"), 400, "no input 'mode'"),
        (request_of(TABLE, pool_type="mean"), 400, "'pool_type' must be one of all, max"),
        (request_of(TABLE, tgthighres="deep"), 400, "target"),
        (request_of(TABLE, tgthighres="t" * 99), 400, "one short text"),
        (
            request_of(np.ones((2, 401)), input_type="bulk", pre_normalized="A"),
            400,
            "use F or T with input type bulk",
        ),
        (request_of(TABLE, pre_normalized="A"), 400, "400 columns and the total count"),
        (request_of(TABLE[:, :9]), 400, "400 columns"),
        (request_of(np.ones((6, 400)), output_type="gene"), 413, "the limit is 5"),
        (request_of(0 * TABLE, input_type="bulk"), 400, "No row has counts"),
        (request_of(-TABLE), 400, "not negative"),
        (changed(data=[[1]]), 400, "as many numbers"),
        (changed(data="x"), 400, "as many numbers"),
        (changed(shape=[2, 2**70]), 400, "as many numbers"),
        (changed(shape=[2**70, 400]), 413, "the limit is 4096"),
        (changed(shape=[0, 400]), 400, "positive sizes"),
        (changed(shape=[800]), 400, "two sizes"),
    ],
    ids=range(19),
)
def test_every_mistake_gets_one_sentence(url: str, body: dict[str, Any], status: int, message: str) -> None:
    response = httpx.post(url + PATH, json=body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert message in response.json()["error"]


def test_results_are_bounded_and_the_oldest_go_first() -> None:
    async def keep_three() -> list[bytes | None]:
        results = Results(max_bytes=20)
        names = [await results.keep(bytes([number]) * 8) for number in range(3)]
        return [await results.get(name) for name in names]

    assert asyncio.run(keep_three()) == [None, b"\1" * 8, b"\2" * 8]


def test_links_name_the_address_that_clients_see(engine: Engine, cells: CellBatch) -> None:
    public = "https://cells.example.org/embed"
    app = create_app(Service([OpenedSource(engine)], Limits()), public_url=public)
    body = request_of(dense(cells.between(0, 1), len(engine.vocab_genes)))
    with TestClient(app) as client:
        (link,) = client.post(PATH, json=body, headers=HOST).json()["outputs"][0]["data"]
        assert link.startswith(f"{public}/v1/results/")
        content = client.get(link.removeprefix(public)).raise_for_status().content
    assert np.load(io.BytesIO(content)).shape == (1, 4 * engine.encoder_width)


@pytest.mark.parametrize(
    "url",
    [
        "cells.example.org",
        "ftp://x",
        "https://",
        "http://x:port",
        "http://x?y=1",
        "http://a@x",
        "http://x/ y",
    ],
)
def test_an_address_that_is_none_is_said_before_a_model_is_loaded(url: str) -> None:
    with pytest.raises(ServingError, match="is no address of an endpoint; give one such as https://"):
        serve(["missing"], port=0, public_url=url)
