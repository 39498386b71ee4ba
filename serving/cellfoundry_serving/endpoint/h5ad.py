"""Uploaded h5ad files: each read by a process of its own from a temporary folder."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint import h5ad_worker
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.label_columns import LabelColumn
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.worker_process import WorkerKilledError, run_worker

MEDIA_TYPE = "application/x-hdf5"
MAX_WAITING = 4  # each with its file in memory


class H5adReader:
    """Reads uploads within limits; used inside one event loop. A client that leaves ends its own process.

    Args:
        limits: of requests.
        turn: taken while a worker runs, by all that run some: one at a time, which bounds the memory.
    """

    def __init__(self, limits: Limits, turn: asyncio.Semaphore) -> None:
        self._limits = limits
        self._turn = turn
        self._waiting = 0

    async def read(self, body: bytes, genes: Sequence[str]) -> CellBatch:
        """Cells of the file over ``genes``; RequestError says why it cannot be read, 429 where others wait already."""
        cells, _ = await self._read(body, genes, labelled=False)
        return cells

    async def read_labelled(
        self, body: bytes, genes: Sequence[str]
    ) -> tuple[CellBatch, dict[str, LabelColumn]]:
        """As ``read``, with the obs columns to colour the cells by; see ``label_columns``."""
        return await self._read(body, genes, labelled=True)

    async def _read(
        self, body: bytes, genes: Sequence[str], labelled: bool
    ) -> tuple[CellBatch, dict[str, LabelColumn]]:
        task = {
            "genes": list(genes),
            "max_cells": self._limits.cells,
            "max_tokens": self._limits.queued_tokens,
            "labelled": labelled,
        }
        async with self._next_turn():
            with tempfile.TemporaryDirectory(prefix="cellfoundry-upload-") as name:
                folder = Path(name)
                await asyncio.to_thread((folder / h5ad_worker.SOURCE).write_bytes, body)
                (folder / h5ad_worker.TASK).write_text(json.dumps(task))
                try:
                    await run_worker(h5ad_worker.__name__, folder)
                except WorkerKilledError as error:
                    raise RequestError(
                        "The file is not an h5ad that can be read within the memory of a request."
                    ) from error
                return await asyncio.to_thread(finished, folder)

    @asynccontextmanager
    async def _next_turn(self) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            raise RequestError("Other files wait already; try again later.", 429, {"Retry-After": "10"})
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()


def finished(folder: Path) -> tuple[CellBatch, dict[str, LabelColumn]]:
    """What the worker left; RequestError with its sentence where it refused the file."""
    refused = folder / h5ad_worker.REFUSED
    if refused.exists():
        raise RequestError(refused.read_text())
    with np.load(folder / h5ad_worker.CELLS, allow_pickle=False) as arrays:
        indptr, gene_ids, counts = arrays["indptr"], arrays["gene_ids"], arrays["counts"]
    columns = json.loads((folder / h5ad_worker.COLUMNS).read_text())
    return CellBatch(indptr, gene_ids, counts, np.arange(len(indptr) - 1)), columns
