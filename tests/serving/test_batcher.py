from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.batcher import Conventions, TokenBatcher
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.export.check import random_cells

T4, T5 = Conventions("all", "t4"), Conventions("all", "t5")


class SumEngine(Engine):
    """A cell's embedding is the sum of its counts; each call is recorded, and waits while ``gate`` is closed."""

    name = "torch"

    def __init__(self) -> None:
        super().__init__(tuple(map(str, range(400))), 1, {}, "for tests")
        self.calls: list[tuple[str, list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def shape(self, output: str, pool: str) -> tuple[int, ...]:
        return (1,)

    def encode(self, batch: CellBatch, **conventions: Any) -> np.ndarray:
        self.entered.set()
        self.gate.wait()
        self.calls.append((conventions["target"], (np.diff(batch.indptr) + 2).tolist()))
        if conventions["target"] == "t5" or 66 in np.diff(batch.indptr):
            raise ValueError("not this one")
        return batch.totals().astype(np.float32)[:, None]


def with_batcher(
    test: Callable[[SumEngine, TokenBatcher], Coroutine[Any, Any, None]], max_tokens: int = 100
) -> SumEngine:
    async def run() -> SumEngine:
        engine = SumEngine()
        batcher = TokenBatcher(engine, max_tokens)
        await test(engine, batcher)
        await batcher.close()
        return engine

    return asyncio.run(asyncio.wait_for(run(), 20))


async def occupied(engine: SumEngine, batcher: TokenBatcher) -> asyncio.Task[np.ndarray]:
    """Starts a request that holds the engine until its gate opens."""
    engine.gate.clear()
    engine.entered.clear()
    task = asyncio.create_task(batcher.encode(random_cells(400, (1,), 0), T4))
    await asyncio.to_thread(engine.entered.wait)
    return task


def test_requests_that_wait_together_share_calls_in_order_of_arrival() -> None:
    async def test(engine: SumEngine, batcher: TokenBatcher) -> None:
        first = await occupied(engine, batcher)
        sizes = [(58,), (300,), (28, 3), (5,)]
        requests = [random_cells(400, genes, seed) for seed, genes in enumerate(sizes)]
        tasks = [asyncio.create_task(batcher.encode(cells, T4)) for cells in requests]
        await asyncio.sleep(0)
        engine.gate.set()
        for cells, embedding in zip(requests, await asyncio.gather(*tasks), strict=True):
            np.testing.assert_array_equal(embedding[:, 0], cells.totals())
        await first

    # The cell of 302 tokens does not fit beside the one before it; it comes next, alone, not last.
    engine = with_batcher(test)
    assert engine.calls == [("t4", [3]), ("t4", [60, 30, 5]), ("t4", [302]), ("t4", [7])]


def test_a_large_request_is_cut_and_put_together_again() -> None:
    cells = random_cells(400, (70, 60, 20, 10, 90), 3)

    async def test(engine: SumEngine, batcher: TokenBatcher) -> None:
        np.testing.assert_array_equal((await batcher.encode(cells, T4))[:, 0], cells.totals())

    assert [sizes for _, sizes in with_batcher(test).calls] == [[72], [62, 22, 12], [92]]


def test_an_error_reaches_only_its_own_batch() -> None:
    async def test(engine: SumEngine, batcher: TokenBatcher) -> None:
        good, bad = random_cells(400, (5,), 0), random_cells(400, (6,), 1)
        results = await asyncio.gather(
            batcher.encode(good, T4),
            batcher.encode(bad, T5),
            batcher.encode(good, T4),
            return_exceptions=True,
        )
        assert isinstance(results[1], ValueError)
        first = await occupied(engine, batcher)
        tasks = [
            asyncio.create_task(batcher.encode(random_cells(400, (genes,), 0), T4)) for genes in (5, 66, 5)
        ]
        await asyncio.sleep(0)
        engine.gate.set()
        shared = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert isinstance(shared[2], ValueError)
        for result in (results[0], results[2], shared[1], shared[3]):
            assert isinstance(result, np.ndarray)
            np.testing.assert_array_equal(result[:, 0], good.totals())

    assert ("t4", [7, 68, 7]) in with_batcher(test).calls


def test_a_client_that_left_costs_nothing() -> None:
    async def test(engine: SumEngine, batcher: TokenBatcher) -> None:
        first = await occupied(engine, batcher)
        leaver = asyncio.create_task(batcher.encode(random_cells(400, (9,), 0), T4))
        stayer = asyncio.create_task(batcher.encode(random_cells(400, (8,), 0), T4))
        await asyncio.sleep(0)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        engine.gate.set()
        await asyncio.gather(first, stayer)

    assert [sizes for _, sizes in with_batcher(test).calls] == [[3], [10]]


def test_the_other_cells_of_a_failed_request_are_not_computed() -> None:
    async def test(engine: SumEngine, batcher: TokenBatcher) -> None:
        first = await occupied(engine, batcher)
        failing = asyncio.create_task(batcher.encode(random_cells(400, (66, 80, 90), 0), T4))
        await asyncio.sleep(0)
        assert batcher.queued_tokens == 68 + 82 + 92
        engine.gate.set()
        with pytest.raises(ValueError, match="not this one"):
            await failing
        await first
        assert batcher.queued_tokens == 0

    assert [sizes for _, sizes in with_batcher(test).calls][:2] == [[3], [68]]


class FloodedEngine(SumEngine):
    """Short cells of other clients arrive during every call, until ``last`` tokens have been computed."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last
        self.flood: Callable[[], None] = lambda: None

    def encode(self, batch: CellBatch, **conventions: Any) -> np.ndarray:
        result = super().encode(batch, **conventions)
        if self.last not in self.calls[-1][1] and len(self.calls) < 100:
            self.flood()
        return result


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 120), st.sampled_from(["t4", "t6"]), st.booleans()), max_size=12),
    st.sampled_from(["t4", "t6"]),
)
def test_a_long_cell_waits_for_no_more_calls_than_there_were_cells_before_it(
    before: list[tuple[int, str, bool]], target: str
) -> None:
    """However many short cells come after it, and whoever of those before it leaves."""

    async def test() -> int:
        engine = FloodedEngine(last=302)
        batcher = TokenBatcher(engine, max_tokens=100)
        loop = asyncio.get_running_loop()
        crowd: list[asyncio.Task[np.ndarray]] = []

        def ask(genes: int, target: str) -> asyncio.Task[np.ndarray]:
            cells = random_cells(400, (genes + (genes == 66),), 0)
            return asyncio.create_task(batcher.encode(cells, Conventions("all", target)))

        def arrive() -> None:
            crowd.extend(ask(10, target) for target in ("t4", "t6", "t4"))

        first = await occupied(engine, batcher)
        early = [(ask(genes, target), leaves) for genes, target, leaves in before]
        long = ask(300, target)
        await asyncio.sleep(0)
        for task, leaves in early:
            if leaves:
                task.cancel()
        engine.flood = lambda: loop.call_soon_threadsafe(arrive) and None
        engine.gate.set()
        await asyncio.gather(first, long)
        await asyncio.gather(*(task for task, _ in early), *crowd, return_exceptions=True)
        await batcher.close()
        calls_before = [sizes for _, sizes in engine.calls].index([302])
        assert calls_before - 1 <= sum(not leaves for _, leaves in early)
        return calls_before

    asyncio.run(asyncio.wait_for(test(), 20))
