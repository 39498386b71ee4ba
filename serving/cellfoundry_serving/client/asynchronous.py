"""The client for an event loop, which has several requests on the way at once."""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from anndata import AnnData

from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.client.base import READY_TIMEOUT, ClientBase, Steps
from cellfoundry_serving.client.call import Call, Outcome, Result, result_of
from cellfoundry_serving.client.cells import Cells, as_source
from cellfoundry_serving.client.models import (
    READY,
    is_ready,
    models_call,
)
from cellfoundry_serving.client.retry import Deadline
from cellfoundry_serving.client.rows import Asked, Rows
from cellfoundry_serving.errors import ServingError


class AsyncClient(ClientBase):
    """As ``Client``, with the same methods to await; of one event loop, and an async context manager.

    >>> async with AsyncClient("http://127.0.0.1:8000") as client:
    ...     embedding = await client.embed(adata)
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = 600.0,
        api_key: str | None = None,
        *,
        retries: int = 5,
        deadline_s: float | None = None,
        wire: str = "v2",
        request_cells: int = 512,
        concurrency: int = 4,
    ) -> None:
        """As of ``Client``; ``concurrency`` is how many requests of one ``embed`` are on the way at once."""
        super().__init__(
            url,
            timeout_s,
            api_key,
            retries=retries,
            deadline_s=deadline_s,
            wire=wire,
            request_cells=request_cells,
        )
        if concurrency < 1:
            raise ServingError(f"concurrency is {concurrency!r}; give 1 or more.")
        self._concurrency = concurrency

    def _open(self, options: dict[str, Any]) -> None:
        self._http = httpx.AsyncClient(**options)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def ready(self) -> bool:
        """True where the endpoint takes requests; False where nothing answers, which is not tried again."""
        return is_ready(await self._try(READY, READY_TIMEOUT))

    async def models(self) -> list[str]:
        """Names of the models that are ready."""
        return await self._ask(models_call(), self._deadline())

    async def vocabulary(self, *, model: str | None = None, version: str | None = None) -> Vocabulary:
        """Genes of a model, by default the endpoint's first, in position order."""
        vocabulary, _ = await self._run(self._vocabulary_steps(Asked(model, version)))
        return vocabulary

    async def embed(
        self,
        cells: Cells,
        *,
        pool: str = "all",
        target: str = "t4",
        model: str | None = None,
        version: str | None = None,
    ) -> npt.NDArray[np.float32]:
        """Embeddings in the cells' order, float32 (cells, width); a cell without counts gives NaN.

        Args:
            cells: an AnnData with raw counts, (gene names, counts matrix cells x genes, dense or sparse), or a
                CellBatch over the model's vocabulary.
            pool: "all" or "max".
            target: depth T asked for: "tN", "fN" or "aN".
            model: by name; by default the endpoint's first.
            version: of the model; by default the one that the endpoint chooses.

        Raises:
            DataError: no gene in common with the model, or values that are not raw counts.
        """
        asked = Asked(model, version, pool, target)
        embedding, _ = await self._run(self._embedding_steps(as_source(cells), asked))
        return embedding

    async def embed_adata(
        self,
        cells: Cells,
        *,
        pool: str = "all",
        target: str = "t4",
        model: str | None = None,
        version: str | None = None,
    ) -> AnnData:
        """A copy of an AnnData with the embeddings, as ``cellfoundry embed --out cells.h5ad`` writes it.

        They are in ``obsm["X_cellfoundry"]``, and ``uns["cellfoundry"]`` says what computed them. A CellBatch gives
        an AnnData that has these alone. Arguments and errors as of ``embed``.
        """
        asked = Asked(model, version, pool, target)
        return await self._run(self._adata_steps(as_source(cells), asked))

    async def _run(self, steps: Steps[Result]) -> Result:
        deadline, result = self._deadline(), None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as done:
                return done.value
            if isinstance(step, Call):
                result = await self._ask(step, deadline)
            else:
                result = await self._ask_all(step, deadline)

    async def _ask_all(self, calls: Iterator[Call[Rows]], deadline: Deadline) -> list[Rows]:
        """All results in order; the first error cancels what is on its way."""
        free = asyncio.Semaphore(self._concurrency)
        tasks: list[asyncio.Task[Rows]] = []

        async def ask(call: Call[Rows]) -> Rows:
            try:
                return await self._ask(call, deadline)
            finally:
                free.release()

        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await free.acquire()
                    # In a thread: 4,096 cells take some 50 ms to align, and the loop has other things to do.
                    call = await asyncio.to_thread(next, calls, None)
                    if call is None:
                        break
                    tasks.append(group.create_task(ask(call)))
        except BaseExceptionGroup as failures:
            first = failures.exceptions[0]
        else:
            return [task.result() for task in tasks]
        raise first

    async def _ask(self, call: Call[Result], deadline: Deadline) -> Result:
        """The result, after as many tries as it takes and the options allow."""
        tries = self._tries(deadline)
        while True:
            outcome = await self._try(call, self._timeout(tries))
            wait_s = tries.wait_s(outcome)
            if wait_s is None:
                return result_of(call, outcome, self.url, tries.made)
            await sleep(wait_s)

    async def _try(self, call: Call[Any], timeout: httpx.Timeout) -> Outcome:
        try:
            return await self._http.request(**call.arguments, timeout=timeout)
        except httpx.RequestError as error:
            return error
