"""Token batcher: cells of concurrent requests share engine calls, first come first served.

A batch is the head of the queue and whatever behind it asks for the same conventions and still fits into the
token budget; nothing is ever put back, so a long cell cannot starve. The head waits a moment for company only
while the engine is idle, and only until there is as much company as the last batch had: a client that is alone
waits for nobody, and under load the next batch gathers while the current one runs.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections import deque

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.aside import aside
from cellfoundry_serving.endpoint.engine_rate import EngineRate
from cellfoundry_serving.endpoint.engine_thread import EngineThread, Timing
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.metrics import ModelMetrics
from cellfoundry_serving.endpoint.pieces import Conventions, Piece, deliver, joined, joined_totals
from cellfoundry_serving.endpoint.request_record import in_hand
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.token_batches import SPECIAL_TOKENS, consecutive, token_counts

WARM_UP_GENES = 1000  # with counts, in a usual cell
WARM_UPS = 2


class TokenBatcher:
    """Runs an engine in a worker thread; used inside one event loop.

    Args:
        engine: computes the batches.
        thread: computes; other batchers may share it.
        metrics: told of each batch.
        max_tokens: tokens of a batch.
        max_wait_s: how long an idle engine waits at most for company of a batch that is not full.
        limits: how many tokens may wait, those of the running batch left out, and how long; None are the defaults.

    Attributes:
        queued_tokens: tokens that wait now.
    """

    def __init__(
        self,
        engine: Engine,
        thread: EngineThread,
        metrics: ModelMetrics,
        max_tokens: int = 16_384,
        max_wait_s: float = 0.002,
        limits: Limits | None = None,
    ) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self._max_wait_s = max_wait_s
        self._limits = limits or Limits()
        self._rate = EngineRate()
        self._running_tokens = 0
        self._running = Timing()
        self._queue: deque[Piece] = deque()
        self.queued_tokens = 0
        self._arrived = asyncio.Event()
        self._enough = asyncio.Event()
        self._last_pieces = 1
        self._thread = thread
        self._thread.waits[self] = self._own_wait_s
        self._metrics = metrics
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def warm_up(self) -> None:
        """Runs a short and a usual cell in the engine's own thread, so that no client pays for first calls; then once
        more, to learn how long the engine takes.

        Raises what the engine raises.
        """
        genes = len(self._engine.vocab_genes)
        lengths = [min(1, genes), min(WARM_UP_GENES, genes)]
        cells = CellBatch(
            np.cumsum([0, *lengths], dtype=np.int64),
            np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
            np.ones(sum(lengths), dtype=np.float32),
            np.arange(len(lengths)),
        )
        for _ in range(WARM_UPS):
            timing = Timing()
            await self._thread.run(functools.partial(self._engine.encode, cells), timing)
        assert timing.began is not None
        assert timing.ended is not None
        self._rate.ran(int(token_counts(cells).sum()), timing.ended - timing.began)

    async def encode(
        self, cells: CellBatch, conventions: Conventions, totals: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Embeddings of ``cells`` in their order; raises what the engine raises.

        ``totals`` (cells,) go with pre-normalized A. A decoder's output costs a token for each gene of the model.
        RequestError where the queue has no room: 429 now, 413 where it never has. What waits before a request
        decides, not its own size, so that a large one gets in where little waits.
        """
        loop = asyncio.get_running_loop()
        tokens = token_counts(cells)
        if conventions.output != "cell":
            tokens = np.full_like(tokens, len(self._engine.vocab_genes) + SPECIAL_TOKENS)
        self._check_room(int(tokens.sum()))
        pieces = [
            Piece(
                cells.between(part.start, part.stop),
                None if totals is None else totals[part.start : part.stop],
                int(tokens[part.start : part.stop].sum()),
                conventions,
                loop.create_future(),
                time.perf_counter(),
                in_hand.get(),
            )
            for part in consecutive(tokens, self._max_tokens, len(cells))
        ]
        self._queue.extend(pieces)
        self.queued_tokens += sum(piece.tokens for piece in pieces)
        self._signal()
        try:
            if len(pieces) == 1:  # nearly every request, which waits and copies less so
                return await pieces[0].result
            rows = await asyncio.gather(*(piece.result for piece in pieces))
            return await aside(sum(part.nbytes for part in rows), functools.partial(np.concatenate, rows))
        finally:
            self._forget(pieces)

    def _check_room(self, tokens: int) -> None:
        most = self._limits.queued_tokens
        if tokens > most:
            raise RequestError(
                f"The request has {tokens} tokens, the limit is {most}; send fewer cells at once.", 413
            )
        if seconds := self.room_in_s(tokens):
            raise too_busy(seconds)

    def room_in_s(self, tokens: int) -> float:
        """Seconds until a request of so many tokens may wait here, estimated, at least 1; 0 where it may now."""
        too_long = self._thread.wait_s() - self._limits.wait_s
        too_many = self.queued_tokens + tokens - self._limits.queued_tokens
        if too_long <= 0 and too_many <= 0:
            return 0.0
        return max(1.0, too_long, self._in_full_batches_s(too_many))

    def _own_wait_s(self) -> float:
        """Estimated seconds until the engine is through with all that is here."""
        running = 0.0
        if self._running_tokens:
            ran = time.perf_counter() - self._running.began if self._running.began else 0.0
            running = max(0.0, self._rate.seconds(self._running_tokens, 1) - ran)
        return running + self._in_full_batches_s(self.queued_tokens)

    def _in_full_batches_s(self, tokens: int) -> float:
        return self._rate.seconds(tokens, tokens / self._max_tokens)

    def _forget(self, pieces: list[Piece]) -> None:
        """Takes what is unfinished out of the queue: its client has left, or another piece has failed."""
        for piece in pieces:
            piece.result.cancel()
        if not any(piece.result.cancelled() for piece in pieces):
            return
        self._queue = deque(piece for piece in self._queue if not piece.result.cancelled())
        self.queued_tokens = sum(piece.tokens for piece in self._queue)
        self._signal()

    async def close(self) -> None:
        """Stops; callers have been answered before, because the server drains first."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        del self._thread.waits[self]

    async def _run(self) -> None:
        was_idle = True
        while True:
            was_idle = was_idle or not self._queue
            await self._arrived.wait()
            if was_idle and not self._enough.is_set():
                await wait_at_most(self._enough, self._max_wait_s)
            batch = self._take()
            if not batch:
                continue
            self._last_pieces = len(batch)
            await self._answer(batch)
            was_idle = False

    async def _answer(self, batch: list[Piece], is_retry: bool = False) -> None:
        """Runs one batch and hands out its rows; after an error each piece runs alone, to find whose it is."""
        self._running_tokens, self._running = sum(piece.tokens for piece in batch), Timing()
        run = functools.partial(
            self._engine.encode,
            joined([piece.cells for piece in batch]),
            totals=joined_totals(batch),
            **vars(batch[0].conventions),
        )
        try:
            rows = await self._thread.run(run, self._running)
            self._note_run(batch, is_retry)
            self._learn()
            deliver(batch, rows)
        except Exception as error:  # belongs to a request, never to the loop
            self._note_run(batch, is_retry)
            if len(batch) > 1:
                for piece in batch:
                    if not piece.result.done():
                        await self._answer([piece], is_retry=True)
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)
        finally:
            self._running_tokens = 0

    def _learn(self) -> None:
        began, ended = self._running.began, self._running.ended
        assert began is not None
        assert ended is not None
        self._metrics.ran(self._running_tokens, ended - began)
        self._rate.ran(self._running_tokens, ended - began)

    def _note_run(self, batch: list[Piece], is_retry: bool) -> None:
        """Tells requests how long they waited, and that their batch has run, alone or with others."""
        began, ended = self._running.began, self._running.ended
        if began is None:  # the server stops, and nothing more runs
            return
        tokens, cells = sum(piece.tokens for piece in batch), sum(len(piece.cells) for piece in batch)
        for piece in batch:
            if not is_retry:
                self._metrics.waited(began - piece.arrived)
            if piece.record:
                if not is_retry:
                    piece.record.note("queue", piece.arrived, began)
                piece.record.note("engine", began, ended, batch_tokens=tokens, batch_cells=cells)

    def _take(self) -> list[Piece]:
        """Removes the next batch from the queue; pieces whose client left this instant are dropped."""
        batch: list[Piece] = []
        skipped: deque[Piece] = deque()
        room = self._max_tokens
        while self._queue:
            piece = self._queue.popleft()
            if piece.result.cancelled():
                self.queued_tokens -= piece.tokens
            elif not batch or (piece.conventions == batch[0].conventions and piece.tokens <= room):
                batch.append(piece)
                room -= piece.tokens
                self.queued_tokens -= piece.tokens
            else:
                skipped.append(piece)
            if batch and room <= 0:
                break
        skipped.extend(self._queue)
        self._queue = skipped
        self._signal()
        return batch

    def _signal(self) -> None:
        for event, is_true in (
            (self._arrived, bool(self._queue)),
            (
                self._enough,
                self.queued_tokens >= self._max_tokens or len(self._queue) >= self._last_pieces,
            ),
        ):
            if is_true:
                event.set()
            else:
                event.clear()


def too_busy(seconds: float) -> RequestError:
    """The refusal of a queue that has room again in so many seconds."""
    return RequestError(
        "Too many cells wait already; try again later.", 429, {"Retry-After": str(math.ceil(seconds))}
    )


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Returns when ``event`` is set or the time is over."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
