from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema
import numpy as np
import pytest
import tritonclient.http as triton
from scraped import scraped
from tritonclient.utils import InferenceServerException

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client import Client
from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.arrow import MEDIA_TYPE
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.server import running
from cellfoundry_serving.engines.base import POOLS, Engine

INFER = "/v2/models/cellfoundry/infer"


def triton_inputs(cells: CellBatch, binary: bool) -> list[triton.InferInput]:
    inputs = []
    for name, datatype, array in (
        ("indptr", "INT64", cells.indptr),
        ("gene_ids", "INT32", cells.gene_ids),
        ("counts", "FP32", cells.counts),
    ):
        tensor = triton.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


def v2_inputs(indptr: Any, gene_ids: Any, counts: Any) -> list[dict[str, Any]]:
    return [
        {"name": "indptr", "datatype": "INT64", "shape": [len(indptr)], "data": indptr},
        {"name": "gene_ids", "datatype": "INT32", "shape": [len(gene_ids)], "data": gene_ids},
        {"name": "counts", "datatype": "FP32", "shape": [len(counts)], "data": counts},
    ]


classified = {"name": "embedding", "parameters": {"classification": 3}}


def shaped(shape: list[int]) -> list[dict[str, Any]]:
    return [{"name": "indptr", "datatype": "INT64", "shape": shape, "data": []}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("pool", POOLS)
def test_tritonclient_gets_what_the_engine_computes(
    url: str, engine: Engine, cells: CellBatch, binary_in: bool, binary_out: bool, pool: str
) -> None:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        result = client.infer(
            "cellfoundry",
            triton_inputs(cells, binary_in),
            outputs=[triton.InferRequestedOutput("embedding", binary_data=binary_out)],
            parameters={"pool": pool, "target": "a5"},
            request_id="7",
        )
    assert result.get_response()["id"] == "7"
    got = np.asarray(result.as_numpy("embedding"), dtype=np.float32)
    np.testing.assert_allclose(got, engine.encode(cells, pool=pool, target="a5"), atol=1e-4, rtol=0)


def test_tritonclient_health_metadata_and_errors(url: str, engine: Engine, cells: CellBatch) -> None:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("cellfoundry")
        assert client.is_model_ready("cellfoundry", "1")
        assert not client.is_model_ready("other")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata("cellfoundry")
        assert [tensor["name"] for tensor in metadata["inputs"]] == ["indptr", "gene_ids", "counts"]
        assert metadata["parameters"]["model_sha256"] == engine.info["weights_sha256"]
        with pytest.raises(InferenceServerException, match="'pool' must be one of all, max"):
            client.infer("cellfoundry", triton_inputs(cells, binary=True), parameters={"pool": "mean"})


def test_native_json_takes_names_and_answers_null_for_empty_cells(
    url: str, engine: Engine, cells: CellBatch
) -> None:
    bodies = []
    for row in range(len(cells)):
        entries = slice(cells.indptr[row], cells.indptr[row + 1])
        genes = [engine.vocab_genes[gene] for gene in cells.gene_ids[entries]]
        # Another order and a gene that the model does not know change nothing.
        bodies.append({"genes": [*genes[::-1], "NO_GENE"][: len(genes) + bool(genes)]})
        bodies[-1]["counts"] = [*cells.counts[entries].tolist()[::-1], 9.0][: len(bodies[-1]["genes"])]
    answer = httpx.post(f"{url}/v1/embed", json={"cells": bodies, "target": "f2"}).json()
    got = np.array(answer["embedding"], dtype=np.float32)
    assert answer["embedding"][3] == [None] * 128
    np.testing.assert_allclose(got, engine.encode(cells, target="f2"), atol=1e-4, rtol=0)


def test_native_json_takes_one_cell_or_rows_of_the_same_genes(
    url: str, engine: Engine, cells: CellBatch
) -> None:
    rows = np.zeros((len(cells), len(engine.vocab_genes)), np.float32)
    for row in range(len(cells)):
        entries = slice(cells.indptr[row], cells.indptr[row + 1])
        rows[row, cells.gene_ids[entries]] = cells.counts[entries]
    expected = engine.encode(cells)
    body = {"genes": list(engine.vocab_genes), "counts": rows.tolist()}
    got = np.array(httpx.post(f"{url}/v1/embed", json=body).json()["embedding"], dtype=np.float32)
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)
    body["counts"] = rows[2].tolist()
    got = np.array(httpx.post(f"{url}/v1/embed", json=body).json()["embedding"], dtype=np.float32)
    np.testing.assert_allclose(got, expected[2:3], atol=1e-4, rtol=0)


def test_every_example_of_the_description_is_answered_and_fits_its_schema(url: str) -> None:
    description = httpx.get(f"{url}/openapi.json").json()
    posted = 0
    for path, methods in description["paths"].items():
        for media_type, body in methods.get("post", {}).get("requestBody", {}).get("content", {}).items():
            for example in body.get("examples", {}).values():
                assert media_type == "application/json"
                jsonschema.validate(example["value"], body["schema"])
                filled = path.format(model="cellfoundry", version="1")
                response = httpx.post(url + filled, json=example["value"])
                assert response.status_code == 200, response.text
                promised = methods["post"]["responses"]["200"]["content"]
                jsonschema.validate(response.json(), promised["application/json"]["schema"])
                posted += 1
    assert posted >= 6


def test_answers_are_of_the_types_that_the_description_promises(url: str, cells: CellBatch) -> None:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]

    def promised(path: str, method: str = "get") -> set[str]:
        return set(paths[path][method]["responses"]["200"].get("content", ()))

    def sent(answer: httpx.Response) -> set[str]:
        assert answer.status_code == 200, answer.text
        return {media_type(answer)} if answer.content else set()

    def media_type(answer: httpx.Response) -> str:
        return answer.headers["content-type"].partition(";")[0]

    names = {"model": "cellfoundry", "version": "1"}
    for path, methods in paths.items():
        if "get" in methods and "{name}" not in path:
            assert sent(httpx.get(url + path.format(**names))) == promised(path)
    assert promised("/v2/health/live") == set()
    assert promised("/metrics") == {"text/plain"}

    native = {"genes": ["A1BG"], "counts": [1]}
    kinds = [
        sent(httpx.post(f"{url}/v1/embed", json=native, headers={"Accept": kind}))
        for kind in ("application/json", MEDIA_TYPE)
    ]
    assert set.union(*kinds) == promised("/v1/embed", "post")
    with triton.InferenceServerClient(urlsplit(url).netloc) as client:
        binary = client.infer("cellfoundry", triton_inputs(cells.select(np.arange(1)), binary=True))
        assert binary.get_output("embedding")["parameters"]["binary_data_size"] > 0
    assert promised("/v2/models/{model}/infer", "post") == {"application/json", "application/octet-stream"}


def schemas_in(described: Any) -> Iterator[Any]:
    """Every schema of an OpenAPI document."""
    if isinstance(described, dict):
        if "schema" in described:
            yield described["schema"]
        described = list(described.values())
    if isinstance(described, list):
        for part in described:
            yield from schemas_in(part)


def test_the_description_tells_of_refusals_and_keys(url: str, engine: Engine) -> None:
    description = httpx.get(f"{url}/openapi.json").json()
    for schema in [*schemas_in(description["paths"]), *description["components"]["schemas"].values()]:
        jsonschema.Draft202012Validator.check_schema(schema)
    refusals = {"description", "content"}
    told: set[str] = set()
    for methods in description["paths"].values():
        for operation in methods.values():
            assert "422" not in operation["responses"]
            for status, answer in operation["responses"].items():
                if status != "200":
                    told.add(status)
                    assert answer.keys() == refusals
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Error"}
    statuses = (400, 401, 403, 404, 408, 413, 415, 429, 431, 500, 503, 504)
    assert told == {*map(str, statuses), "default"}
    refused = httpx.post(f"{url}/v1/umap").json()
    jsonschema.validate(refused, description["components"]["schemas"]["Error"])
    keys = description["components"]["securitySchemes"]
    assert keys["bearer"] == {"type": "http", "scheme": "bearer"}
    assert {} in description["security"]  # none is needed here
    with running(engine, keys=ApiKeys(["k" * 32])) as guarded:
        document = httpx.get(f"{guarded}/openapi.json", headers={"B-Authorization": "k" * 32}).json()
        assert document["security"] == [{"bearer": []}, {"B-Authorization": []}]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                status = httpx.request(method, guarded + path).status_code
                assert (status == 401) == (operation.get("security") != [])


def test_concurrent_clients_get_their_own_cells(url: str, engine: Engine, cells: CellBatch) -> None:
    expected = {pool: engine.encode(cells, pool=pool) for pool in POOLS}

    def ask(number: int) -> None:
        rows = np.random.default_rng(number).permutation(len(cells))[: 1 + number % 5]
        pool = POOLS[number % 2]
        with Client(url) as client:
            got = client.embed(cells.select(rows), pool=pool)
        np.testing.assert_allclose(got, expected[pool][rows], atol=1e-4, rtol=0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(40)))


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (INFER, b"{", 400, "not valid JSON"),
        (INFER, b"[" * 100_000, 400, "not valid JSON"),
        (INFER, b"[]", 400, "must be a JSON object"),
        (INFER, {}, 400, "needs a list 'inputs'"),
        (INFER, {"inputs": [3]}, 400, "needs a 'name'"),
        (INFER, {"id": {}, "inputs": v2_inputs([0, 1], [1], [1])}, 400, "'id' must be text"),
        (INFER, {"inputs": v2_inputs([0, 1], [1], [1.0])[:2]}, 400, "The inputs are indptr"),
        (INFER, {"inputs": v2_inputs([0], [], [])}, 400, "no cells"),
        (INFER, {"inputs": v2_inputs([0, 2], [1], [1.0])}, 400, "indptr must start at 0"),
        (INFER, {"inputs": v2_inputs([0, 2, 1], [1], [1.0])}, 400, "never fall"),
        (INFER, {"inputs": v2_inputs([0, 2**63 - 1, 2 - 2**63, 1], [1], [1.0])}, 400, "never fall"),
        (INFER, {"inputs": v2_inputs([0, 2], [1, 2], [1.0])}, 400, "must have the same length"),
        (INFER, {"inputs": [{"name": "x" * 10_000}]}, 400, "so long a name"),
        (INFER, {"inputs": v2_inputs([0, 1], [400], [1.0])}, 400, "between 0 and 399"),
        (INFER, {"inputs": v2_inputs([0, 1], [-1], [1.0])}, 400, "between 0 and 399"),
        (INFER, {"inputs": v2_inputs([0, 1], [1.5], [1.0])}, 400, "numbers of type INT32"),
        (INFER, {"inputs": v2_inputs([0, 1], [2**40], [1.0])}, 400, "numbers of type INT32"),
        (INFER, {"inputs": v2_inputs([0, 1], [1], ["x"])}, 400, "numbers of type FP32"),
        (INFER, {"inputs": v2_inputs([0, 1], [1], [0.5])}, 400, "must be raw counts"),
        (INFER, {"inputs": v2_inputs([0, 1], [1], [-1])}, 400, "must be raw counts"),
        (INFER, {"inputs": v2_inputs([0, 1], [1], [1e300])}, 400, "must be raw counts"),
        (INFER, {"inputs": v2_inputs([0, 1], [1], [1]), "parameters": {"target": "x"}}, 400, "target"),
        (INFER, {"inputs": v2_inputs([0, 1], [1], [1]), "parameters": {"target": 4}}, 400, "must be text"),
        (INFER, {"inputs": v2_inputs([0, 1], [1], [1]), "outputs": [{"name": "y"}]}, 400, "only output"),
        (INFER, {"inputs": v2_inputs([0, 1], [1], [1]), "outputs": [classified]}, 400, "The only parameter"),
        (INFER.replace("cellfoundry", "x"), {"inputs": []}, 404, "no such model"),
        ("/v1/embed", {"cells": [{"genes": ["A1BG"]}]}, 400, "lists of the same length"),
        ("/v1/embed", {"cells": [{"genes": ["GENE0"], "counts": [1]}]}, 400, "none of its 1 genes"),
        (INFER, {"inputs": shaped([10**30, 0])}, 400, "list of one size"),
        (INFER, {"inputs": shaped([0] * 5000)}, 400, "list of one size"),
        (INFER, {"inputs": shaped([10**30])}, 400, "numbers of type INT64"),
        (INFER, {"inputs": v2_inputs([0, 1], [1], [1]), "parameters": {"output": "gene"}}, 400, "'output'"),
        (
            INFER,
            {"inputs": v2_inputs([0, 1], [1], [1]), "parameters": {"target": "t" * 99}},
            400,
            "text such",
        ),
        ("/v1/embed", {"cells": [{"genes": ["A1BG"], "counts": [1]}], "pol": "max"}, 400, "'pol'"),
        ("/v1/embed", {"cells": [{"genes": ["A1BG"], "counts": [None]}]}, 400, "must be numbers"),
        ("/v1/embed", {"cells": [{"genes": ["A1BG"], "counts": [[1, 2]]}]}, 400, "must be numbers"),
        ("/v1/embed", {"cells": [{"genes": ["A1BG"], "counts": [True]}]}, 400, "must be numbers"),
        ("/v1/embed", {"cells": [{"genes": ["A1BG"], "counts": [10**400]}]}, 400, "fit a float32"),
        ("/v1/embed", {"cells": {}}, 400, "must be a list"),
        ("/v1/embed", {}, 400, "either 'cells'"),
        ("/v1/embed", {"cells": [], "genes": []}, 400, "either 'cells'"),
        ("/v1/embed", {"genes": ["A1BG"]}, 400, "lists of the same length"),
        ("/v1/embed", {"genes": ["A1BG"], "counts": [[1], [1, 2]]}, 400, "Cell 1: 'genes' and"),
        ("/v1/embed", {"genes": ["A1BG"], "counts": [[1], 2]}, 400, "lists of the same length"),
        ("/v1/nothing", {}, 404, "Not Found"),
        ("/docs", {}, 404, "Not Found"),
    ],
)
def test_every_mistake_gets_one_sentence(url: str, path: str, body: Any, status: int, message: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx.post(url + path, content=content)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    ("header", "size", "tail"),
    [("999999", 8, 8), ("-1", 8, 8), ("9" * 5000, 8, 8), (None, 8, 7), (None, 16, 8), (None, 8, 9)],
)
def test_lying_sizes_are_refused(url: str, header: str | None, size: int, tail: int) -> None:
    tensor = {"name": "indptr", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": size}}
    document = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": header or str(len(document))}
    response = httpx.post(url + INFER, content=document + bytes(tail), headers=headers)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]


def test_a_client_that_leaves_midway_is_no_failure_of_the_server(engine: Engine) -> None:
    with running(engine) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
        deadline = time.monotonic() + 20
        while not scraped(url, "cellfoundry_requests_total", status="499") and time.monotonic() < deadline:
            pass
        assert scraped(url, "cellfoundry_requests_total", status="499") == 1
        assert scraped(url, "cellfoundry_requests_total", status="500") == 0


def test_limits_and_metrics(engine: Engine) -> None:
    empty = {"genes": [], "counts": []}
    with running(engine, limits=Limits(body_bytes=1000, cells=2)) as url:
        assert httpx.post(f"{url}/v1/embed", json={"cells": [empty] * 2}).status_code == 200
        many = httpx.post(f"{url}/v1/embed", json={"cells": [empty] * 3})
        large = httpx.post(f"{url}/v1/embed", content=b" " * 1001)
        chunked = httpx.post(f"{url}/v1/embed", content=iter([b" " * 600] * 2))
        assert [response.status_code for response in (many, large, chunked)] == [413] * 3
        assert "the limit is 2" in many.json()["error"]
        assert "larger than 1000 bytes" in chunked.json()["error"]
        assert scraped(url, "cellfoundry_requests_total", status="413") == 3
        assert scraped(url, "cellfoundry_cells_total", model="cellfoundry", version="1") == 2
        assert scraped(url, "cellfoundry_request_seconds_count", route="/v1/embed") == 1
        assert scraped(url, "cellfoundry_stage_seconds_count", stage="engine") == 1
        assert scraped(url, "process_resident_memory_bytes") > 1e8
