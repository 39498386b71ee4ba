"""Every call of the protocol over gRPC, asked by Triton's own client."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToDict
from grpc_client import METHOD, MODEL, copies, inputs, refused, service, tensors
from odd_engines import GatedEngine
from scraped import scraped
from tritonclient.grpc import aio, model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client import Client
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.server import running_with_grpc
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import FolderSource
from cellfoundry_serving.endpoint.v2_grpc.messages import FILE, SERVICE
from cellfoundry_serving.engines.base import POOLS, Engine


@pytest.fixture(scope="module")
def addresses(engine: Engine) -> Iterator[tuple[str, str]]:
    with running_with_grpc(service(engine)) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def client(addresses: tuple[str, str]) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(addresses[1]) as client:
        yield client


def with_nested(messages: Any) -> dict[str, Any]:
    found = {message.full_name: message for message in messages}
    for message in messages:
        found |= with_nested(message.nested_types)
    return found


def facts(field: Any) -> tuple[Any, ...]:
    kind = field.message_type or field.enum_type
    return field.number, field.type, field.is_repeated, kind and kind.full_name, field.has_presence


def test_messages_are_those_of_the_public_protocol() -> None:
    theirs = with_nested(
        [
            *service_pb2.DESCRIPTOR.message_types_by_name.values(),
            *model_config_pb2.DESCRIPTOR.message_types_by_name.values(),
        ]
    )
    for name, message in with_nested(FILE.message_types_by_name.values()).items():
        for field in message.fields:
            assert facts(field) == facts(theirs[name].fields_by_name[field.name]), field.full_name
    datatypes = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values_by_name
    for value in FILE.enum_types_by_name["DataType"].values:
        assert value.number == datatypes[value.name].number
    methods = service_pb2.DESCRIPTOR.services_by_name[SERVICE.name].methods_by_name
    for method in SERVICE.methods:
        of_theirs = methods[method.name]
        for side in ("input_type", "output_type"):
            assert getattr(method, side).full_name == getattr(of_theirs, side).full_name
        assert (method.client_streaming, method.server_streaming) == (
            of_theirs.client_streaming,
            of_theirs.server_streaming,
        )


def test_health_and_readiness(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2")
    assert not client.is_model_ready("other")


def test_facts_are_those_that_http_tells(
    addresses: tuple[str, str], client: triton.InferenceServerClient, cells: CellBatch
) -> None:
    client.infer(MODEL, inputs(cells))
    url = addresses[0]
    fields = partial(
        MessageToDict, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert fields(client.get_server_metadata()) == httpx.get(f"{url}/v2").json()
    metadata = httpx.get(f"{url}/v2/models/{MODEL}").json()
    for tensor in [*metadata["inputs"], *metadata["outputs"]]:
        tensor["shape"] = list(map(str, tensor["shape"]))  # as protobuf writes int64 in JSON
    got = fields(client.get_model_metadata(MODEL, "1"))
    assert got == {name: value for name, value in metadata.items() if name != "parameters"}
    config = client.get_model_config(MODEL, as_json=True)["config"]
    assert config["backend"] == "cellfoundry"
    assert config["input"][2] == {"name": "counts", "data_type": "TYPE_FP32", "dims": ["-1"]}
    assert config["output"] == [{"name": "embedding", "data_type": "TYPE_FP32", "dims": ["-1", "-1"]}]
    for asked in ((), (MODEL,), (MODEL, "1")):
        (told,) = httpx.get(f"{url}/v2/models/stats").json()["model_stats"]
        (got,) = client.get_inference_statistics(*asked).model_stats
        assert (got.name, got.version) == (MODEL, "1")
        assert got.inference_count == told["inference_count"] >= len(cells)
        assert got.inference_stats.success.count == told["inference_stats"]["success"]["count"] >= 1
        assert got.inference_stats.success.ns == told["inference_stats"]["success"]["ns"] > 0


@pytest.mark.parametrize("pool", POOLS)
def test_vectors_are_the_engines_and_those_of_http(
    addresses: tuple[str, str],
    client: triton.InferenceServerClient,
    engine: Engine,
    cells: CellBatch,
    pool: str,
) -> None:
    parameters = {"pool": pool, "target": "a5"}
    outputs = [triton.InferRequestedOutput("embedding")]
    result = client.infer(MODEL, inputs(cells), "1", outputs, request_id="7", parameters=parameters)
    with Client(addresses[0]) as http:
        by_http = http.embed(cells, pool=pool, target="a5")
    answer = result.get_response()
    assert (answer.model_name, answer.model_version, answer.id) == (MODEL, "1", "7")
    got = result.as_numpy("embedding")
    np.testing.assert_array_equal(got, by_http)
    np.testing.assert_allclose(got, engine.encode(cells, pool=pool, target="a5"), atol=1e-5, rtol=0)


def test_typed_contents_are_as_good_as_raw_ones(
    addresses: tuple[str, str], client: triton.InferenceServerClient, cells: CellBatch
) -> None:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    fields = {"INT64": "int64_contents", "INT32": "int_contents", "FP32": "fp32_contents"}
    for name, datatype, array in tensors(cells):
        contents = {fields[datatype]: array.tolist()}
        request.inputs.add(name=name, datatype=datatype, shape=array.shape, contents=contents)
    with grpc.insecure_channel(addresses[1]) as channel:
        call = channel.unary_unary(
            f"{METHOD}ModelInfer",
            service_pb2.ModelInferRequest.SerializeToString,
            service_pb2.ModelInferResponse.FromString,
        )
        got = triton.InferResult(call(request)).as_numpy("embedding")
    np.testing.assert_array_equal(got, client.infer(MODEL, inputs(cells)).as_numpy("embedding"))


def test_a_stream_answers_in_order_and_survives_errors(
    addresses: tuple[str, str], client: triton.InferenceServerClient, cells: CellBatch, engine: Engine
) -> None:
    answers: queue.Queue[tuple[triton.InferResult | None, InferenceServerException | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for row in range(len(cells)):
        one = inputs(cells.select(np.array([row])))
        client.async_stream_infer(MODEL, one, request_id=str(row), enable_empty_final_response=row == 2)
        client.async_stream_infer(MODEL, one[:2], request_id=f"wrong {row}")
    got = [answers.get(timeout=20) for _ in range(2 * len(cells))]
    client.stop_stream()
    for row, expected in enumerate(engine.encode(cells)):
        result, error = got[2 * row]
        assert result is not None
        answer = result.get_response()
        assert (answer.id, error) == (str(row), None)
        assert answer.parameters["triton_final_response"].bool_param == (row == 2)
        np.testing.assert_allclose(result.as_numpy("embedding")[0], expected, atol=1e-4, rtol=0)
        result, error = got[2 * row + 1]
        assert result is None
        assert "The inputs are indptr" in str(error)
    assert scraped(addresses[0], "cellfoundry_request_seconds_count", route="grpc/ModelStreamInfer") >= len(
        cells
    )


def test_the_client_for_asyncio(addresses: tuple[str, str], cells: CellBatch, engine: Engine) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for row in range(len(cells)):
            yield {"model_name": MODEL, "inputs": inputs(cells.select(np.array([row])))}

    async def ask() -> tuple[triton.InferResult, list[triton.InferResult]]:
        async with aio.InferenceServerClient(addresses[1]) as client:
            assert await client.is_model_ready(MODEL)
            alone = await client.infer(MODEL, inputs(cells))
            return alone, [result async for result, _ in client.stream_infer(requests())]

    alone, streamed = asyncio.run(ask())
    expected = engine.encode(cells)
    rows = np.concatenate([result.as_numpy("embedding") for result in streamed])
    for got in (alone.as_numpy("embedding"), rows):
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_concurrent_clients_get_their_own_cells(
    client: triton.InferenceServerClient, cells: CellBatch, engine: Engine
) -> None:
    expected = {pool: engine.encode(cells, pool=pool) for pool in POOLS}

    def ask(number: int) -> None:
        rows = np.random.default_rng(number).permutation(len(cells))[: 1 + number % 5]
        pool = POOLS[number % 2]
        result = client.infer(MODEL, inputs(cells.select(rows)), parameters={"pool": pool})
        np.testing.assert_allclose(result.as_numpy("embedding"), expected[pool][rows], atol=1e-4, rtol=0)

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(ask, range(96)))


def test_a_new_version_comes_while_a_request_is_in_hand(tmp_path: Path) -> None:
    engines: dict[str, GatedEngine] = {}

    def opened(folder: Path) -> Engine:
        engines[folder.name] = GatedEngine()
        return engines[folder.name]

    (tmp_path / "1").mkdir()
    models = Service([FolderSource("m", tmp_path, opened)], Limits(cache_bytes=0))
    with (
        running_with_grpc(models, allow_load=True) as (_, address),
        triton.InferenceServerClient(address) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        in_hand = pool.submit(client.infer, "m", inputs(copies(1)))
        assert engines["1"].entered.wait(20)
        (tmp_path / "2").mkdir()
        loading = pool.submit(client.load_model, "m")
        engines["1"].gate.set()
        loading.result(20)
        assert in_hand.result(20).get_response().model_version == "1"
        engines["2"].gate.set()
        assert client.infer("m", inputs(copies(1))).get_response().model_version == "2"
        (loaded,) = client.get_model_repository_index().models
        assert (loaded.name, loaded.version, loaded.state) == ("m", "2", "READY")
        with pytest.raises(InferenceServerException, match="Loading takes no parameters"):
            client.load_model("m", config="{}")
        client.unload_model("m")
        assert not client.is_model_ready("m")
        (gone,) = client.get_model_repository_index().models
        assert (gone.name, gone.version, gone.state) == ("m", "", "UNAVAILABLE")


def test_who_may_not_load_is_told_so(client: triton.InferenceServerClient) -> None:
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="may not load") as caught:
            change(MODEL)
        assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
    assert client.is_model_ready(MODEL)


def test_calls_that_are_not_ours_are_unimplemented(client: triton.InferenceServerClient) -> None:
    for call in (client.get_system_shared_memory_status, client.get_trace_settings, client.get_log_settings):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize("name", ["ModelInfer", "ServerLive", "ModelStreamInfer"])
def test_bytes_that_are_no_message_are_refused(addresses: tuple[str, str], name: str) -> None:
    with grpc.insecure_channel(addresses[1]) as channel:
        if name == "ModelStreamInfer":
            (answer,) = channel.stream_stream(METHOD + name)(iter([b"\xff" * 9]))
            message = service_pb2.ModelStreamInferResponse.FromString(answer).error_message
            assert message == "The request is no valid ModelInferRequest."
            return
        error = refused(lambda: channel.unary_unary(METHOD + name)(b"\xff" * 9))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"The request is no valid {name}Request."
