"""What every protocol asks: embeddings of checked cells by a served model, within limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.errors import ModelError
from cellfoundry_serving.endpoint.aside import aside
from cellfoundry_serving.endpoint.body_budget import BodyBudget
from cellfoundry_serving.endpoint.cache import EmbeddingCache, cell_keys
from cellfoundry_serving.endpoint.errors import MAX_NAME, RequestError
from cellfoundry_serving.endpoint.journal import Journal
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.metrics import Metrics
from cellfoundry_serving.endpoint.models import Models, ServedModel
from cellfoundry_serving.endpoint.pieces import Conventions
from cellfoundry_serving.endpoint.request_record import in_hand
from cellfoundry_serving.endpoint.sources import ModelSource
from cellfoundry_serving.engines.base import POOLS


class Service:
    """Served models and all that their requests share.

    Args:
        sources: of the models, the default one first.
        limits: of requests.
        journal: takes what is told of finished requests; by default only the log does.

    Attributes:
        limits: of requests.
        metrics: what has been done.
        models: compute.
        bodies: memory for requests' bodies.
        journal: takes the records of finished requests.
        draining: whether the server is about to stop; until it does it answers all the same.
    """

    def __init__(
        self, sources: Sequence[ModelSource], limits: Limits, journal: Journal | None = None
    ) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.journal = journal or Journal()
        self.draining = False
        self.models = Models(sources, limits, self.metrics)
        self.bodies = BodyBudget(limits.bodies_bytes)
        self._cache = EmbeddingCache(limits.cache_bytes)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Takes requests inside, in the event loop that enters."""
        try:
            async with self.models.open():
                yield
        finally:
            await asyncio.to_thread(self.journal.close)

    async def embed(
        self,
        model: ServedModel,
        cells: CellBatch,
        conventions: Conventions,
        totals: npt.NDArray[np.float64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Results (cells, ...); RequestError where the queue is full, or what the engine raises.

        ``totals`` (cells,) go with pre-normalized A. Cancelling takes the cells out of the queue.
        """
        started = time.perf_counter()
        record = in_hand.get()
        if record:
            record.cells += len(cells)
        try:
            if self.limits.cache_bytes and conventions.output == "cell" and totals is None:
                embedding = await self._remembered(model, cells, conventions)
            else:
                embedding = await model.batcher.encode(cells, conventions, totals)
        except (RequestError, ModelError):  # refused
            raise
        except Exception:
            model.metrics.failed.add(time.perf_counter() - started)
            raise
        ended = time.perf_counter()
        model.metrics.answered(len(cells), ended - started)
        if record:
            record.note("answer", ended)
        return embedding

    async def _remembered(
        self, model: ServedModel, cells: CellBatch, conventions: Conventions
    ) -> npt.NDArray[np.float32]:
        """As the batcher, but only for cells that the cache lacks."""
        started = time.perf_counter()
        size = cells.gene_ids.nbytes + cells.counts.nbytes
        keys = await aside(size, partial(cell_keys, cells, conventions, model.identity))
        rows = [self._cache.get(key) for key in keys]
        missing = np.array([position for position, row in enumerate(rows) if row is None], dtype=np.int64)
        kept, looked_s = len(cells) - len(missing), (time.perf_counter() - started) / len(cells)
        model.metrics.kept.add(kept * looked_s, kept)
        model.metrics.not_kept.add(len(missing) * looked_s, len(missing))
        self.metrics.cache_hits.inc(kept)
        self.metrics.cache_misses.inc(len(missing))
        found = [row for row in rows if row is not None]
        if not len(missing):
            return await aside(sum(row.nbytes for row in found), partial(np.stack, found))
        is_new = len(missing) == len(cells)
        lacking = cells if is_new else await aside(size, partial(cells.select, missing))
        computed = await model.batcher.encode(lacking, conventions)
        copies = await aside(computed.nbytes, partial(row_copies, computed))
        for position, row in zip(missing, copies, strict=True):
            rows[position] = row
            self._cache.put(keys[position], row)
        self.metrics.cache_bytes.set(self._cache.bytes)
        return computed if is_new else await aside(size, partial(np.stack, rows))


def row_copies(embedding: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Each row with memory of its own."""
    return [row.copy() for row in embedding]


def check_loading(allowed: bool, parameters: Mapping[str, Any] | None = None) -> None:
    """RequestError where clients may not load and unload models, or say from where."""
    if not allowed:
        raise RequestError(
            "Clients may not load or unload models here; start the server with --allow-load.", 403
        )
    if parameters:
        raise RequestError("Loading takes no parameters: models come from the server's own folders.")


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
