"""What gRPC refuses, with which status, and that refusing frees what was taken."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
from grpc_client import METHOD, MODEL, Channel, copies, inputs, refused, request_of, service
from odd_engines import BrokenEngine, GatedEngine, until
from scraped import scraped
from tritonclient.utils import InferenceServerException

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.server import running_with_grpc
from cellfoundry_serving.endpoint.v2_grpc import server as grpc_server
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError

KEY = "k" * 32


def test_with_keys_every_call_but_the_probes_needs_one(engine: Engine, cells: CellBatch) -> None:
    with (
        running_with_grpc(service(engine), ApiKeys([KEY])) as (_, address),
        triton.InferenceServerClient(address) as client,
    ):
        assert client.is_server_live()
        assert client.is_server_ready()
        calls = [
            lambda headers: client.get_server_metadata(headers=headers),
            lambda headers: client.is_model_ready(MODEL, headers=headers),
            lambda headers: client.infer(MODEL, inputs(cells), headers=headers),
        ]
        wrong = [{}, {"authorization": f"Bearer {KEY}x"}, {"authorization": KEY}, {"b-authorization": "x"}]
        for call in calls:
            for headers in wrong:
                with pytest.raises(InferenceServerException, match="API key is needed") as caught:
                    call(headers)
                assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
            for headers in ({"authorization": f"Bearer {KEY}"}, {"b-authorization": KEY}):
                assert call(headers)
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put(error))
        assert "API key is needed" in str(answers.get(timeout=20))
        client.stop_stream()


@pytest.fixture
def no_message() -> Iterator[Iterator[bytes]]:
    """A client's messages, which do not come before the test ends."""
    ended = threading.Event()

    def messages() -> Iterator[bytes]:
        ended.wait(60)
        yield b""

    yield messages()
    ended.set()


@pytest.mark.parametrize("name", ["ModelInfer", "ServerMetadata"])
def test_without_a_key_no_message_is_awaited(engine: Engine, name: str, no_message: Iterator[bytes]) -> None:
    models = service(engine)
    with (
        running_with_grpc(models, ApiKeys([KEY])) as (_, address),
        grpc.insecure_channel(address) as channel,
    ):
        error = refused(lambda: channel.stream_unary(METHOD + name)(no_message, timeout=20))
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED
        assert "x-request-id" in dict(error.trailing_metadata())
        assert 'cellfoundry_requests_total{status="UNAUTHENTICATED"} 1' in models.metrics.text()


def test_a_message_that_does_not_arrive(engine: Engine, no_message: Iterator[bytes]) -> None:
    with (
        running_with_grpc(service(engine, timeout_s=0.3)) as (_, address),
        grpc.insecure_channel(address) as channel,
    ):
        error = refused(lambda: channel.stream_unary(f"{METHOD}ModelInfer")(no_message, timeout=20))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert error.details() == "The message did not arrive within 0.3 s."


def test_more_calls_at_once_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "MAX_CALLS", 1)
    engine = GatedEngine()
    with (
        running_with_grpc(service(engine)) as (_, address),
        triton.InferenceServerClient(address) as client,
        Channel(address) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(client.infer, MODEL, inputs(copies(1)))
        assert engine.entered.wait(20)
        assert channel.refusal(request_of(copies(1)))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        engine.gate.set()
        assert len(call.result(20).as_numpy("embedding")) == 1


def test_messages_share_the_limit_of_all_bodies() -> None:
    engine = GatedEngine()
    with (
        running_with_grpc(service(engine, bodies_bytes=1)) as (url, address),
        triton.InferenceServerClient(address) as client,
        Channel(address) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(client.infer, MODEL, inputs(copies(1)))  # alone it may be larger
        assert engine.entered.wait(20)
        error = refused(lambda: channel.infer(request_of(copies(1))))
        assert (error.code(), error.details()[:24]) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Other requests' bodies f",
        )
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put(error))
        client.async_stream_infer(MODEL, inputs(copies(1)))
        assert "try again later" in str(answers.get(timeout=20))
        client.stop_stream()
        assert httpx.post(f"{url}/v1/embed", content=b"{}").status_code == 429
        engine.gate.set()
        assert len(call.result(20).as_numpy("embedding")) == 1
        assert httpx.post(f"{url}/v1/embed", content=b"{}").status_code == 400


def test_a_body_or_a_number_of_cells_beyond_the_limit() -> None:
    engine = GatedEngine()
    engine.gate.set()
    with (
        running_with_grpc(service(engine, body_bytes=2000, cells=3)) as (_, address),
        triton.InferenceServerClient(address) as client,
    ):
        assert client.infer(MODEL, inputs(copies(3))).as_numpy("embedding").shape == (3, 1)
        for cells, compression in ((4, None), (1000, None), (1000, "gzip")):
            with pytest.raises(InferenceServerException, match=r"limit is 3|larger than max") as caught:
                client.infer(MODEL, inputs(copies(cells)), compression_algorithm=compression)
            assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_a_full_queue_is_refused_and_takes_more_once_there_is_room() -> None:
    engine = GatedEngine()
    with (
        running_with_grpc(service(engine, queued_tokens=8)) as (url, address),
        triton.InferenceServerClient(address) as client,
        Channel(address) as channel,
        ThreadPoolExecutor(2) as pool,
    ):
        code, sentence = channel.refusal(request_of(copies(3)))  # 12 tokens never fit
        assert (code, sentence[:26]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "The request has 12 tokens,")
        calls = [pool.submit(client.infer, MODEL, inputs(copies(1)))]
        assert engine.entered.wait(20)
        calls.append(pool.submit(client.infer, MODEL, inputs(copies(2))))
        until(lambda: scraped(url, "cellfoundry_queued_tokens") == 8)
        error = refused(lambda: channel.infer(request_of(copies(1))))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "try again later" in error.details()
        assert ("retry-after", "1") in [tuple(pair) for pair in error.trailing_metadata()]
        engine.gate.set()
        assert [len(call.result(20).as_numpy("embedding")) for call in calls] == [1, 2]
        assert client.infer(MODEL, inputs(copies(2))).as_numpy("embedding").tolist() == [[3], [3]]


def test_an_answer_that_takes_too_long_leaves_the_queue() -> None:
    engine = GatedEngine()
    with (
        running_with_grpc(service(engine, timeout_s=0.3)) as (_, address),
        triton.InferenceServerClient(address) as client,
    ):
        for cells in (1, 2):
            with pytest.raises(InferenceServerException, match=r"longer than 0\.3 s") as caught:
                client.infer(MODEL, inputs(copies(cells)))
            assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        engine.gate.set()
        assert len(client.infer(MODEL, inputs(copies(3))).as_numpy("embedding")) == 3
    assert engine.calls == [1, 3]  # the first was running already; the second had left the queue


def test_a_client_that_gives_up_costs_nothing() -> None:
    engine = GatedEngine()
    with (
        running_with_grpc(service(engine)) as (url, address),
        triton.InferenceServerClient(address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running_now = pool.submit(client.infer, MODEL, inputs(copies(1)))
        assert engine.entered.wait(20)
        with pytest.raises(InferenceServerException) as caught:
            client.infer(MODEL, inputs(copies(2)), client_timeout=0.3)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        until(lambda: scraped(url, "cellfoundry_requests_total", status="CANCELLED") == 1)
        cancelled = client.async_infer(MODEL, inputs(copies(2)), lambda result, error: None)
        until(lambda: scraped(url, "cellfoundry_queued_tokens") == 8)
        cancelled.cancel()
        until(lambda: scraped(url, "cellfoundry_requests_total", status="CANCELLED") == 2)
        client.start_stream(lambda result, error: None)
        client.async_stream_infer(MODEL, inputs(copies(2)))
        until(lambda: scraped(url, "cellfoundry_queued_tokens") == 8)
        client.stop_stream(cancel_requests=True)
        until(lambda: scraped(url, "cellfoundry_requests_total", status="CANCELLED") == 3)
        assert scraped(url, "cellfoundry_queued_tokens") == 0
        engine.gate.set()
        assert len(running_now.result(20).as_numpy("embedding")) == 1
    assert engine.calls == [1]


@pytest.mark.parametrize("error", [RuntimeError("/secret/model"), ServingError("/secret/model")])
def test_a_failure_of_the_server_tells_nothing_of_its_inside(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        running_with_grpc(service(BrokenEngine(error))) as (url, address),
        triton.InferenceServerClient(address) as client,
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(MODEL, inputs(copies(1)))
        assert caught.value.status() == "StatusCode.INTERNAL"
        assert caught.value.message() == "The server failed on this request; its log says why."
        assert client.is_server_ready()
        assert scraped(url, "cellfoundry_requests_total", status="INTERNAL") == 1
    assert "/secret/model" in caplog.text
