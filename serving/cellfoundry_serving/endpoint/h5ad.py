"""Uploaded h5ad files: read by a process of their own from a temporary folder, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint import h5ad_worker
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.limits import Limits

MEDIA_TYPE = "application/x-hdf5"


class H5adReader:
    """Reads uploads over a vocabulary within limits; used inside one event loop.

    One at a time, which bounds the memory; others wait, and a client that leaves ends its own process.
    """

    def __init__(self, genes: Sequence[str], limits: Limits) -> None:
        self._task = json.dumps(
            {"genes": list(genes), "max_cells": limits.cells, "max_tokens": limits.queued_tokens}
        )
        self._turn = asyncio.Semaphore(1)

    async def read(self, body: bytes) -> CellBatch:
        """Cells of the file; RequestError says why it cannot be read."""
        async with self._turn:
            with tempfile.TemporaryDirectory(prefix="cellfoundry-upload-") as name:
                folder = Path(name)
                await asyncio.to_thread((folder / h5ad_worker.SOURCE).write_bytes, body)
                (folder / h5ad_worker.TASK).write_text(self._task)
                await run_worker(folder)
                return await asyncio.to_thread(finished, folder)


async def run_worker(folder: Path) -> None:
    """Waits for the worker's end; ends it where the caller is cancelled."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        h5ad_worker.__name__,
        str(folder),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise


def finished(folder: Path) -> CellBatch:
    """What the worker left; 400 with its sentence, or without where it did not survive the file."""
    refused, cells = folder / h5ad_worker.REFUSED, folder / h5ad_worker.CELLS
    if refused.exists():
        raise RequestError(refused.read_text())
    if not cells.exists():
        raise RequestError("The file is not an h5ad that can be read within the memory of a request.")
    with np.load(cells, allow_pickle=False) as arrays:
        indptr, gene_ids, counts = arrays["indptr"], arrays["gene_ids"], arrays["counts"]
    return CellBatch(indptr, gene_ids, counts, np.arange(len(indptr) - 1))
