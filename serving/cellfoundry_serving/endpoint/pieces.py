"""The parts of requests that share the engine's calls, and how they are put together and taken apart again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.embedder import Output, Pool
from cellfoundry_model.tokens import InputType, PreNormalized
from cellfoundry_serving.endpoint.request_record import RequestRecord


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
    arrived: float
    record: RequestRecord | None


def joined(parts: list[CellBatch]) -> CellBatch:
    """All cells of ``parts``, in order."""
    if len(parts) == 1:  # nothing to copy
        return parts[0]
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
