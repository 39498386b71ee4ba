"""UMAPs of embeddings, each computed by a process of its own."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellfoundry_serving.endpoint import umap_worker
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.worker_process import WorkerKilledError, run_worker
from cellfoundry_serving.umap_layout import MIN_CELLS


class UmapMaker:
    """Computes UMAPs; used inside one event loop. A client that leaves ends its own process.

    Args:
        turn: as ``H5adReader`` has it.
    """

    def __init__(self, turn: asyncio.Semaphore) -> None:
        self._turn = turn

    async def layout(self, embedding: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Places (cells, 2) of cells (cells, width), NaN for those whose embedding is; the same for the same cells.

        RequestError for fewer than 5 cells with an embedding, or more than memory allows.
        """
        known = np.isfinite(embedding).all(axis=1)
        if known.sum() < MIN_CELLS:
            raise RequestError(
                f"A UMAP needs at least {MIN_CELLS} cells with counts; the file has {known.sum()}."
            )
        layout = np.full((len(embedding), 2), np.nan, dtype=np.float32)
        async with self._turn:
            layout[known] = await computed(embedding[known])
        return layout


async def computed(embedding: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The worker's answer; RequestError 413 where it needs more memory than it may have."""
    with tempfile.TemporaryDirectory(prefix="cellfoundry-umap-") as name:
        folder = Path(name)
        await asyncio.to_thread(np.save, folder / umap_worker.EMBEDDING, embedding)
        try:
            await run_worker(umap_worker.__name__, folder)
        except WorkerKilledError as error:
            raise RequestError(
                "The UMAP needs more memory than a request may take; send fewer cells at once.", 413
            ) from error
        return np.load(folder / umap_worker.LAYOUT, allow_pickle=False)
