from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.batcher import TokenBatcher
from cellfoundry_serving.endpoint.engine_rate import EngineRate
from cellfoundry_serving.endpoint.engine_thread import EngineThread
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.metrics import Metrics
from cellfoundry_serving.endpoint.pieces import Conventions
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


class TokenEngine(SumEngine):
    """Half a millisecond a token."""

    def encode(self, batch: CellBatch, **conventions: Any) -> np.ndarray:
        time.sleep(0.0005 * (batch.nnz + 2 * len(batch)))
        return batch.totals().astype(np.float32)[:, None]


@asynccontextmanager
async def batching(
    engine: Engine, max_tokens: int = 100, max_wait_s: float = 0.002, limits: Limits | None = None
) -> AsyncIterator[TokenBatcher]:
    with ThreadPoolExecutor(1) as executor:
        metrics = Metrics().of_model("m", 1)
        batcher = TokenBatcher(engine, EngineThread(executor), metrics, max_tokens, max_wait_s, limits)
        yield batcher
        await batcher.close()


def with_batcher(
    test: Callable[[SumEngine, TokenBatcher], Coroutine[Any, Any, None]], max_tokens: int = 100
) -> SumEngine:
    async def run() -> SumEngine:
        engine = SumEngine()
        async with batching(engine, max_tokens) as batcher:
            await test(engine, batcher)
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


def test_an_idle_engine_waits_for_as_many_as_came_last_time_and_no_longer() -> None:
    """With a wait that would outlast the test, were it not cut short."""
    cells = random_cells(400, (5,), 0)

    async def ask(batcher: TokenBatcher, clients: int) -> None:
        await asyncio.gather(*(batcher.encode(cells, T4) for _ in range(clients)))

    async def test() -> list[int]:
        engine = SumEngine()
        async with batching(engine, max_wait_s=600) as batcher:
            await ask(batcher, 1)
            await ask(batcher, 3)
            early = asyncio.create_task(ask(batcher, 2))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            calls = len(engine.calls)
            await ask(batcher, 1)
            await early
            assert calls == 2
        return [len(sizes) for _, sizes in engine.calls]

    assert asyncio.run(asyncio.wait_for(test(), 20)) == [1, 3, 3]


def test_a_fresh_engine_knows_its_speed_from_warming_up() -> None:
    """Without a request computed, the second one of two large ones is refused where it would wait too long."""

    async def test() -> None:
        engine = TokenEngine()
        async with batching(engine, max_tokens=1000, limits=Limits(wait_s=0.5)) as batcher:
            await batcher.warm_up()
            large = random_cells(400, (398,) * 20, 0)  # 8,000 tokens of 0.5 ms each
            first = asyncio.create_task(batcher.encode(large, T4))
            await asyncio.sleep(0)
            with pytest.raises(RequestError, match="Too many cells wait already") as refused:
                await batcher.encode(large, T4)
            assert refused.value.status == 429
            first.cancel()

    asyncio.run(asyncio.wait_for(test(), 20))


def test_what_waits_for_another_model_counts_and_its_time_is_not_ours() -> None:
    """Two batchers over one thread."""
    cells = random_cells(400, (5,), 0)

    async def test() -> None:
        engine, other = SumEngine(), SumEngine()
        with ThreadPoolExecutor(1) as executor:
            thread, metrics = EngineThread(executor), Metrics()
            numbers = [metrics.of_model("m", 1), metrics.of_model("n", 1)]
            busy, waiting = (
                TokenBatcher(each, thread, number)
                for each, number in zip((engine, other), numbers, strict=True)
            )
            first = await occupied(engine, busy)
            second = asyncio.create_task(waiting.encode(cells, T4))
            await asyncio.sleep(0.2)
            engine.gate.set()
            await asyncio.gather(first, second)
            assert numbers[1].queue.seconds >= 0.2
            assert numbers[1].engine.seconds < 0.1
            await asyncio.gather(busy.close(), waiting.close())

    asyncio.run(asyncio.wait_for(test(), 20))


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


class SlowEngine(SumEngine):
    """Takes 50 ms at least for each call."""

    def encode(self, batch: CellBatch, **conventions: Any) -> np.ndarray:
        time.sleep(0.05)
        return super().encode(batch, **conventions)


def test_who_would_wait_too_long_is_refused_with_the_time_to_come_back() -> None:
    async def run() -> None:
        engine = SlowEngine()
        async with batching(engine, max_tokens=100, limits=Limits(wait_s=0.001)) as batcher:
            # Nothing is known of the engine's speed, so all are taken; and then one of any size, as nothing waits.
            short = random_cells(400, (1,), 0)
            await asyncio.gather(batcher.encode(short, T4), batcher.encode(short, T4))
            long = asyncio.create_task(batcher.encode(random_cells(400, [98] * 40, 0), T4))
            await asyncio.sleep(0)
            # 40 full batches wait.
            with pytest.raises(RequestError, match="try again later") as refused:
                await batcher.encode(short, T4)
            assert refused.value.status == 429
            assert refused.value.headers is not None
            assert int(refused.value.headers["Retry-After"]) >= 1
            long.cancel()
            while batcher.room_in_s(3):
                await asyncio.sleep(0.001)
            assert (await batcher.encode(short, T4)).shape == (1, 1)

    asyncio.run(asyncio.wait_for(run(), 20))


def test_the_time_of_a_batch_and_of_a_token_are_learned_from_recent_batches() -> None:
    rate = EngineRate()
    assert rate.seconds(10_000, 1) == 0
    rate.ran(2000, 0.025)
    assert rate.seconds(10_000, 1) == pytest.approx(0.105)
    rate = EngineRate()
    for _ in range(20):
        rate.ran(7, 0.005)
    assert rate.seconds(10_000, 1) == pytest.approx(0.005)  # until a long one has shown more
    rate.ran(10_000, 0.105)
    assert rate.seconds(10_000, 1) == pytest.approx(0.105, rel=0.01)
    assert rate.seconds(7, 1) == pytest.approx(0.005, rel=0.05)
    for _ in range(40):
        rate.ran(7, 0.1)
        rate.ran(10_000, 1.1)
    assert rate.seconds(20_000, 2) == pytest.approx(2.2, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 20_000), st.floats(1e-5, 100)), min_size=1, max_size=8))
def test_no_batches_make_an_estimate_negative_or_endless(batches: list[tuple[int, float]]) -> None:
    rate = EngineRate()
    for tokens, seconds in batches:
        rate.ran(tokens, seconds)
    assert 0 <= rate.seconds(5000, 1) < 5000 * max(seconds for _, seconds in batches) + 1


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
        async with batching(engine, max_tokens=100) as batcher:
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
        calls_before = [sizes for _, sizes in engine.calls].index([302])
        assert calls_before - 1 <= sum(not leaves for _, leaves in early)
        return calls_before

    asyncio.run(asyncio.wait_for(test(), 20))
