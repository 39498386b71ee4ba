"""Token batcher: cells of concurrent requests share engine calls, first come first served.

A batch is the head of the queue and whatever behind it asks for the same conventions and still fits into the
token budget; nothing is ever put back, so a long cell cannot starve. The head waits a moment for company only
while the engine is idle: under load the next batch gathers while the current one runs.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.embedder import Output, Pool
from cellfoundry_model.tokens import InputType, PreNormalized
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.token_batches import SPECIAL_TOKENS, consecutive, token_counts

WARM_UP_GENES = 1000  # with counts, in a usual cell


@dataclass(frozen=True)
class Conventions:
    """What must be equal for two cells to share an engine call; see ``Engine.encode``."""

    pool: Pool
    target: str
    output: Output = "cell"
    input_type: InputType = "singlecell"
    pre_normalized: PreNormalized = "F"
    bulk_median: float | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a request that fits into one batch (or a single cell that is longer)."""

    cells: CellBatch
    totals: npt.NDArray[np.float64] | None
    tokens: int
    conventions: Conventions
    result: asyncio.Future[npt.NDArray[np.float32]]


class TokenBatcher:
    """Runs an engine in one worker thread; used inside one event loop.

    Args:
        engine: computes the batches.
        max_tokens: tokens of a batch.
        max_wait_s: how long an idle engine waits for company of a batch that is not full.
        max_queued_tokens: tokens that may wait, those of the running batch left out.

    Attributes:
        queued_tokens: tokens that wait now.
        batches: engine calls so far.
        batch_tokens: tokens of those calls.
    """

    def __init__(
        self,
        engine: Engine,
        max_tokens: int = 16_384,
        max_wait_s: float = 0.002,
        max_queued_tokens: int = Limits().queued_tokens,
    ) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self._max_wait_s = max_wait_s
        self._max_queued_tokens = max_queued_tokens
        self._queue: deque[Piece] = deque()
        self.queued_tokens = 0
        self.batches = 0
        self.batch_tokens = 0
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def warm_up(self) -> None:
        """Runs a short and a usual cell in the engine's own thread, so that no client pays for first calls.

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
        await asyncio.get_running_loop().run_in_executor(self._worker, self._engine.encode, cells)

    async def encode(
        self, cells: CellBatch, conventions: Conventions, totals: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Embeddings of ``cells`` in their order; raises what the engine raises.

        ``totals`` (cells,) go with pre-normalized A. A decoder's output costs a token for each gene of the model.
        RequestError where the queue has no room: 429 now, 413 where it never has.
        """
        loop = asyncio.get_running_loop()
        tokens = token_counts(cells)
        if conventions.output != "cell":
            tokens = np.full_like(tokens, len(self._engine.vocab_genes) + SPECIAL_TOKENS)
        self._check_room(int(tokens.sum()))
        pieces = [
            Piece(
                cells.select(np.arange(part.start, part.stop)),
                None if totals is None else totals[part.start : part.stop],
                int(tokens[part.start : part.stop].sum()),
                conventions,
                loop.create_future(),
            )
            for part in consecutive(tokens, self._max_tokens, len(cells))
        ]
        self._queue.extend(pieces)
        self.queued_tokens += sum(piece.tokens for piece in pieces)
        self._signal()
        try:
            return np.concatenate(await asyncio.gather(*(piece.result for piece in pieces)))
        finally:
            self._forget(pieces)

    def _check_room(self, tokens: int) -> None:
        if tokens > self._max_queued_tokens:
            raise RequestError(
                f"The request has {tokens} tokens, the limit is {self._max_queued_tokens}; send fewer cells at once.",
                413,
            )
        if self.queued_tokens + tokens > self._max_queued_tokens:
            raise RequestError("Too many cells wait already; try again later.", 429, {"Retry-After": "1"})

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
        self._worker.shutdown()

    async def _run(self) -> None:
        was_idle = True
        while True:
            was_idle = was_idle or not self._queue
            await self._arrived.wait()
            if was_idle and not self._full.is_set():
                await wait_at_most(self._full, self._max_wait_s)
            batch = self._take()
            if not batch:
                continue
            await self._answer(batch)
            was_idle = False

    async def _answer(self, batch: list[Piece]) -> None:
        """Runs one batch and hands out its rows; after an error each piece runs alone, to find whose it is."""
        self.batches += 1
        self.batch_tokens += sum(piece.tokens for piece in batch)
        run = functools.partial(
            self._engine.encode,
            joined([piece.cells for piece in batch]),
            totals=joined_totals(batch),
            **vars(batch[0].conventions),
        )
        try:
            deliver(batch, await asyncio.get_running_loop().run_in_executor(self._worker, run))
        except Exception as error:  # belongs to a request, never to the loop
            if len(batch) > 1:
                for piece in batch:
                    if not piece.result.done():
                        await self._answer([piece])
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)

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
            (self._full, self.queued_tokens >= self._max_tokens),
        ):
            if is_true:
                event.set()
            else:
                event.clear()


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Returns when ``event`` is set or the time is over."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


def joined(parts: list[CellBatch]) -> CellBatch:
    """All cells of ``parts``, in order."""
    lengths = np.concatenate([np.diff(part.indptr) for part in parts])
    return CellBatch(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([part.gene_ids for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.row_ids for part in parts]),
    )


def joined_totals(batch: list[Piece]) -> npt.NDArray[np.float64] | None:
    """Totals of all cells of a batch, whose pieces all have them or none has."""
    totals = [piece.totals for piece in batch if piece.totals is not None]
    return np.concatenate(totals) if totals else None


def deliver(batch: list[Piece], embedding: npt.NDArray[np.float32]) -> None:
    """Hands each piece its rows."""
    first = 0
    for piece in batch:
        rows = embedding[first : first + len(piece.cells)]
        first += len(piece.cells)
        if not piece.result.done():
            piece.result.set_result(rows)
