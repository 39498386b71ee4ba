"""What goes into the module that learns: cell vectors where the encoder stands still, else packed tokens.

Legend: E labelled cells with counts, W width of a cell's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from anndata import AnnData
from torch import Tensor

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.joined_cells import Cells
from cellfoundry_model.embedder import micro_batches
from cellfoundry_model.token_batch import TokenBatch, TokenizedCells
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.finetune.split import Positions

READ_CELLS = 1024

Source: TypeAlias = str | Path | AnnData
Progress = Callable[[str, int, int], None]
Part = TypeVar("Part")


class Inputs(Protocol):
    """Inputs of cells, on the device, in parts that fit it."""

    def parts(self, cells: Positions) -> Iterator[tuple[Positions, Tensor | TokenBatch]]:
        """Yield (positions, their input); each of ``cells`` once, in any order."""


class VectorInputs:
    """Vectors (E, W) computed once: an epoch then costs no pass through the encoder."""

    def __init__(self, vector_EW: npt.NDArray[np.float32], device: torch.device) -> None:
        self.vector_EW = torch.from_numpy(vector_EW).to(device)

    def parts(self, cells: Positions) -> Iterator[tuple[Positions, Tensor]]:
        """All of ``cells`` at once."""
        yield cells, self.vector_EW[torch.from_numpy(cells).to(self.vector_EW.device)]


class TokenInputs:
    """Tokens in memory, put on the device part by part, cells of like length together."""

    def __init__(self, cells: TokenizedCells, max_tokens: int, device: torch.device) -> None:
        self._cells, self._max_tokens, self._device = cells, max_tokens, device

    def parts(self, cells: Positions) -> Iterator[tuple[Positions, TokenBatch]]:
        """Parts of at most ``max_tokens`` tokens, or of one cell."""
        for chosen in micro_batches(self._cells.lengths[cells], self._max_tokens, len(cells)):
            yield cells[chosen], self._cells[cells[chosen]].to(self._device)


def read_cells(
    cells: Cells,
    wanted_C: npt.NDArray[np.bool_],
    take: Callable[[CellBatch], Part],
    progress: Progress | None,
) -> tuple[list[Part], npt.NDArray[np.int64]]:
    """``take`` of every batch of wanted cells that have counts, and these cells' rows, int64 (E,).

    TrainingError if there is no such cell.
    """
    parts: list[Part] = []
    rows: list[npt.NDArray[np.int64]] = []
    for batch, _ in cells.blocks(READ_CELLS):
        chosen = batch.select(np.flatnonzero(wanted_C[batch.row_ids] & (np.diff(batch.indptr) > 0)))
        if len(chosen):
            parts.append(take(chosen))
            rows.append(chosen.row_ids)
        if progress:
            progress("read", int(batch.row_ids[-1]) + 1, cells.n_cells)
    if not parts:
        raise TrainingError("no labelled cell has counts in the model's genes; check matrix and label")
    return parts, np.concatenate(rows)
