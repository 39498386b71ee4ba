"""gRPC beside HTTP: its port, and stopping with calls in hand."""

from __future__ import annotations

import queue
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_client import MODEL, copies, inputs, service
from odd_engines import BrokenEngine, GatedEngine, until
from scraped import scraped
from served import served
from slow_link import slow_link
from tritonclient.utils import InferenceServerException

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.batcher import WARM_UPS
from cellfoundry_serving.endpoint.server import make_server, running_with_grpc, serve
from cellfoundry_serving.endpoint.v2_grpc.server import GrpcServer
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError


def is_refused(address: str) -> bool:
    """Whether a new client is turned away."""
    with triton.InferenceServerClient(address) as client:
        try:
            client.is_server_ready(client_timeout=5)
        except InferenceServerException as error:
            return error.status() == "StatusCode.UNAVAILABLE"
    return False


def test_a_port_in_use_is_said_before_a_model_is_loaded(model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"Port {port} on 127.0.0.1 is not free .* with --grpc-port"):
            serve([str(model_dir / "missing")], port=0, grpc_port=port)


def test_two_servers_never_share_a_port() -> None:
    with running_with_grpc(service(GatedEngine())) as (_, address):
        host, port = address.split(":")
        other = service(GatedEngine())
        server = make_server(other, None, False, GrpcServer(other, None, False, host, int(port)))
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            pytest.raises(ServingError, match=f"Port {port} on 127.0.0.1 is not free"),
        ):
            server.run(sockets=[listener])


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_others_can_ask_only_with_keys(model_dir: Path, host: str) -> None:
    with pytest.raises(ServingError, match="not loopback"):
        serve([str(model_dir)], host=host, port=0, grpc_port=0)


def test_a_model_that_cannot_compute_is_never_ready() -> None:
    broken = BrokenEngine(RuntimeError("no memory"))
    broken.warm_ups = WARM_UPS
    with (
        pytest.raises(ServingError, match="the model failed on its first cells"),
        running_with_grpc(service(broken)),
    ):
        pass


def test_stopping_answers_what_was_accepted_and_refuses_what_comes_later() -> None:
    engine = GatedEngine()
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with ExitStack() as server, ThreadPoolExecutor(3) as pool:
        url, address = server.enter_context(running_with_grpc(service(engine)))
        client, streaming = triton.InferenceServerClient(address), triton.InferenceServerClient(address)
        idle = triton.InferenceServerClient(address)
        running = pool.submit(client.infer, MODEL, inputs(copies(1)))
        assert engine.entered.wait(20)
        waiting = pool.submit(client.infer, MODEL, inputs(copies(2)))
        ended: queue.Queue[Any] = queue.Queue()
        idle.start_stream(lambda result, error: ended.put(error))
        streaming.start_stream(lambda result, error: answers.put((result, error)))
        streaming.async_stream_infer(MODEL, inputs(copies(3)))
        until(lambda: scraped(url, "cellfoundry_queued_tokens") == 20)
        stopping = pool.submit(server.close)
        until(lambda: is_refused(address))
        assert not stopping.done()
        engine.gate.set()
        assert len(running.result(20).as_numpy("embedding")) == 1
        assert len(waiting.result(20).as_numpy("embedding")) == 2
        result, _ = answers.get(timeout=20)
        assert len(result.as_numpy("embedding")) == 3
        for error in (answers.get(timeout=20)[1], ended.get(timeout=20)):
            assert error.status() == "StatusCode.UNAVAILABLE"
            assert "The server is stopping" in error.message()
        stopping.result(20)
        for each in (client, streaming, idle):
            each.close()


@pytest.mark.parametrize("answered", ["before", "while"])
def test_stopping_waits_until_a_slow_client_has_the_answer(answered: str) -> None:
    engine = GatedEngine()
    served_here = service(engine)
    many = 4000  # 16 kB: less than any window of HTTP/2, so that the server may send all of it at once
    with ExitStack() as server, ThreadPoolExecutor(2) as pool:
        _, address = server.enter_context(running_with_grpc(served_here))
        with slow_link(address) as link, triton.InferenceServerClient(link.address) as client:
            asked = pool.submit(client.infer, MODEL, inputs(copies(many)))
            assert engine.entered.wait(20)
            if answered == "before":
                link.open.clear()
                engine.gate.set()
                until(lambda: served_here.models.all()[0].metrics.success.count == 1)
            stopping = pool.submit(server.close)
            if answered == "while":
                until(lambda: is_refused(address))
                with pytest.raises(
                    TimeoutError
                ):  # time for the client to hear of it, if it is told too early
                    stopping.result(1)
                link.open.clear()
                engine.gate.set()
            with pytest.raises(TimeoutError):
                stopping.result(1)
            link.open.set()
            assert len(asked.result(20).as_numpy("embedding")) == many
            stopping.result(20)


def test_stopping_under_load_loses_no_answer() -> None:
    engine = GatedEngine()
    engine.gate.set()
    served = service(engine)
    cells = inputs(copies(2))
    answered: queue.Queue[int] = queue.Queue()

    def ask_until_refused(address: str) -> str:
        with triton.InferenceServerClient(address) as client:
            while True:
                try:
                    answered.put(len(client.infer(MODEL, cells).as_numpy("embedding")))
                except InferenceServerException as error:
                    return error.status()

    with ThreadPoolExecutor(8) as pool:
        with running_with_grpc(served) as (_, address):
            clients = [pool.submit(ask_until_refused, address) for _ in range(8)]
            until(lambda: answered.qsize() > 100)
        # CANCELLED is gRPC's own answer to a call that arrived in the last instant, of which we never knew.
        assert {client.result(20) for client in clients} <= {"StatusCode.UNAVAILABLE", "StatusCode.CANCELLED"}
    assert answered.qsize() == served.models.all()[0].metrics.success.count


def test_sigterm_answers_what_was_accepted(
    model_dir: Path, engine: Engine, cells: CellBatch, tmp_path: Path
) -> None:
    many = cells.select(np.tile(np.arange(len(cells)), 50))
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with (
        served(model_dir, tmp_path / "log") as command,
        triton.InferenceServerClient(command.grpc) as client,
    ):

        def tokens_or_cells() -> float:
            return sum(
                scraped(command.url, f"cellfoundry_{name}") for name in ("queued_tokens", "cells_total")
            )

        assert tokens_or_cells() == 0
        client.async_infer(MODEL, inputs(many), lambda result, error: answers.put((result, error)))
        # All of the call has arrived. (A short call sent after it was answered before that, 2 times of 60.)
        until(lambda: tokens_or_cells() > 0)
        command.process.send_signal(signal.SIGTERM)
        result, error = answers.get(timeout=60)
        assert error is None, str(error)
        assert command.process.wait(30) == 0
    got = result.as_numpy("embedding")[-len(cells) :]
    np.testing.assert_allclose(got, engine.encode(cells), atol=1e-4, rtol=0)
