"""What every protocol asks: embeddings of checked cells, from one engine behind one batcher, within limits."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import Request

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.batcher import Conventions, TokenBatcher
from cellfoundry_serving.endpoint.cache import EmbeddingCache, cell_keys
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.incoming import while_connected
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.metrics import Metrics
from cellfoundry_serving.engines.base import POOLS, Engine

MODEL_NAME = "cellfoundry"
MAX_NAME = 32  # characters of a client's text that an error repeats


class Service:
    """An open engine and all that its requests share.

    Attributes:
        engine: computes.
        limits: of requests.
        metrics: what has been done.
        index: position of each gene name.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine = engine
        self.limits = limits
        self.metrics = Metrics()
        self.index = {gene: position for position, gene in enumerate(engine.vocab_genes)}
        self._cache = EmbeddingCache(limits.cache_bytes)
        self._batcher: TokenBatcher | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Takes requests inside, after a first batch; the batcher lives in the event loop that enters."""
        self._batcher = TokenBatcher(self.engine, max_queued_tokens=self.limits.queued_tokens)
        try:
            await self._batcher.warm_up()
            yield
        finally:
            await self._batcher.close()

    async def embed(
        self,
        request: Request,
        cells: CellBatch,
        conventions: Conventions,
        totals: npt.NDArray[np.float64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Results (cells, ...) for a client that waits; RequestError or what the engine raises.

        ``totals`` (cells,) go with pre-normalized A.
        """
        started = time.perf_counter()
        if self.limits.cache_bytes and conventions.output == "cell" and totals is None:
            work = self._remembered(cells, conventions)
        else:
            work = self._batch(cells, conventions, totals)
        embedding = await while_connected(request, work, self.limits.timeout_s)
        self.metrics.embedded(len(cells), time.perf_counter() - started)
        return embedding

    async def _remembered(self, cells: CellBatch, conventions: Conventions) -> npt.NDArray[np.float32]:
        """As ``_batch``, but only for cells that the cache lacks."""
        keys = cell_keys(cells, conventions)
        rows = [self._cache.get(key) for key in keys]
        missing = np.array([position for position, row in enumerate(rows) if row is None], dtype=np.int64)
        if len(missing):
            lacking = cells if len(missing) == len(cells) else cells.select(missing)
            for position, row in zip(missing, await self._batch(lacking, conventions), strict=True):
                rows[position] = row
                self._cache.put(keys[position], row)
        return np.stack([row for row in rows if row is not None])

    async def _batch(
        self, cells: CellBatch, conventions: Conventions, totals: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.float32]:
        assert self._batcher is not None
        return await self._batcher.encode(cells, conventions, totals)

    def metrics_text(self) -> str:
        """The exposition of all counters as they are now."""
        if self._batcher is not None:
            self.metrics.queued_tokens = self._batcher.queued_tokens
            self.metrics.batches = self._batcher.batches
            self.metrics.batch_tokens = self._batcher.batch_tokens
        self.metrics.cache_hits = self._cache.hits
        self.metrics.cache_misses = self._cache.misses
        self.metrics.cache_bytes = self._cache.bytes
        return self.metrics.text()


def read_conventions(fields: dict[str, Any]) -> Conventions:
    """``pool`` and ``target``, by default "all" and "t4"; an unknown target is refused by the engine.

    Anything else is refused: an option that was silently ignored would give numbers that nobody asked for.
    """
    for name in fields.keys() - {"pool", "target"}:
        raise RequestError(f"There is no parameter {name[:MAX_NAME]!r}; the parameters are pool and target.")
    pool, target = fields.get("pool", "all"), fields.get("target", "t4")
    if pool not in POOLS:
        raise RequestError(f"'pool' must be one of {', '.join(POOLS)}.")
    if not isinstance(target, str) or len(target) > MAX_NAME:
        raise RequestError("'target' must be text such as 't4'.")
    return Conventions(pool, target)
