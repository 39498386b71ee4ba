"""Several requests of one call on the way at once: their order, their errors, and their end."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from scripted_server import Handler, ScriptedServer, answer, counted, embedding, scripted

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client import AsyncClient, asynchronous
from cellfoundry_serving.errors import ServingError


def embed_async(url: str, cells: CellBatch, **options: Any) -> np.ndarray:
    async def main() -> np.ndarray:
        async with AsyncClient(url, request_cells=1, **options) as client:
            return await client.embed(cells, model="cell")

    return asyncio.run(main())


@pytest.mark.parametrize(("concurrency", "at_once"), [(None, 4), (2, 2)])
def test_requests_are_on_the_way_together_and_results_in_order(concurrency: int | None, at_once: int) -> None:
    together = threading.Barrier(at_once)
    lock, now, most = threading.Lock(), [0], [0]

    def step(handler: Handler) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(20)  # breaks unless so many are on the way
        with lock:
            now[0] -= 1
        embedding(handler)

    options = {} if concurrency is None else {"concurrency": concurrency}
    with scripted(step) as server:
        got = embed_async(server.url, counted(12), **options)
    np.testing.assert_array_equal(got[:, 0], np.arange(12))
    assert most[0] == at_once


def test_the_first_error_cancels_the_rest() -> None:
    together, over = threading.Barrier(4), threading.Event()

    def step(handler: Handler) -> None:
        if together.wait(20) == 0:
            answer(400)(handler)
        else:
            over.wait(30)

    with scripted(step) as server:
        try:
            with pytest.raises(ServingError, match="answered 400: Come back later"):
                embed_async(server.url, counted(100))
            assert len(server.paths) == 4
        finally:
            over.set()


def test_a_client_whose_call_was_cancelled_goes_on() -> None:
    begun, over = threading.Barrier(5), threading.Event()

    def step(handler: Handler) -> None:
        if not over.is_set():
            begun.wait(20)
            over.wait(30)
        embedding(handler)

    async def main(server: ScriptedServer) -> np.ndarray:
        async with AsyncClient(server.url, request_cells=1) as client:
            call = asyncio.create_task(client.embed(counted(9), model="cell"))
            await asyncio.to_thread(begun.wait, 20)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            over.set()
            return await client.embed(counted(9), model="cell")

    with scripted(step) as server:
        got = asyncio.run(main(server))
        assert len(server.paths) == 4 + 9
    np.testing.assert_array_equal(got[:, 0], np.arange(9))


def test_one_request_that_is_refused_for_a_while_delays_only_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asynchronous, "sleep", sleep)
    with scripted(*[lambda handler: embedding(handler)] * 3, answer(503), embedding) as server:
        got = embed_async(server.url, counted(8))
    np.testing.assert_array_equal(got[:, 0], np.arange(8))
    assert len(waits) == 1
