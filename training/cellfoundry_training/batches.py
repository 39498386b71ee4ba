"""Micro-batches on the device before they are asked for: read, pinned and copied while the step before computes."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cellfoundry_data.batch import CellBatch

if TYPE_CHECKING:
    from cellfoundry_data.loader import ShardDataset


@dataclass(frozen=True)
class CellTensors:
    """Raw cells in CSR form on a device, ready for ``mask_cells``.

    Attributes:
        indptr: int64, (cells + 1,).
        gene_ids: int32, (nnz,).
        counts: float32, (nnz,).
        cell_ids: int64, (cells,); store rows.
    """

    indptr: Tensor
    gene_ids: Tensor
    counts: Tensor
    cell_ids: Tensor

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.indptr) - 1

    @classmethod
    def of(cls, batch: CellBatch, device: torch.device) -> CellTensors:
        """The batch on ``device``: on CPU as views of its memory, on CUDA through pinned memory on this stream."""
        columns = (batch.indptr, batch.gene_ids, batch.counts, batch.row_ids)
        tensors = [torch.from_numpy(column) for column in columns]
        if device.type == "cuda":
            tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
        return cls(*tensors)

    def tensors(self) -> tuple[Tensor, ...]:
        """All columns."""
        return self.indptr, self.gene_ids, self.counts, self.cell_ids


@dataclass(frozen=True)
class Read:
    """A micro-batch that was read ahead, and where the loader stands after it."""

    cells: CellTensors
    position: dict[str, Any]
    copied: torch.cuda.Event | None


class PrefetchedBatches:
    """An endless iterator of a rank's micro-batches, ``ahead`` of them always in the making in one thread.

    A step needs all its micro-batches before its first forward pass (the loss is a mean over all of them), so
    ``ahead`` is best their number: a whole step is then read while the one before computes.

    Attributes:
        position: the loader's state after the batch handed out last, for checkpoints; what was only read ahead is
            not counted.
        waited_s: seconds that the consumer has waited so far.
    """

    def __init__(self, cells: ShardDataset, device: torch.device, ahead: int = 1) -> None:
        self.position: dict[str, Any] = cells.state_dict()
        self.waited_s = 0.0
        self._cells, self._device = cells, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._batches = itertools.chain.from_iterable(itertools.repeat(cells))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cellfoundry-batches")
        self._ahead: deque[Future[Read]] = deque(self._thread.submit(self._read) for _ in range(ahead))

    def __enter__(self) -> PrefetchedBatches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop reading; a batch that is being read is finished first."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[CellTensors]:
        return self

    def __next__(self) -> CellTensors:
        """The next batch, usable on the current stream; raises what reading it raised (DataError)."""
        started = time.perf_counter()
        read = self._ahead.popleft().result()
        self._ahead.append(self._thread.submit(self._read))
        self.waited_s += time.perf_counter() - started
        if read.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(read.copied)
            for tensor in read.cells.tensors():
                # Their memory belongs to the copying stream, which must not reuse it before this one is done.
                tensor.record_stream(stream)
        self.position = read.position
        return read.cells

    def _read(self) -> Read:
        batch = next(self._batches)
        position = self._cells.state_dict()
        if self._stream is None:
            return Read(CellTensors.of(batch, self._device), position, None)
        with torch.cuda.stream(self._stream):
            cells = CellTensors.of(batch, self._device)
            return Read(cells, position, self._stream.record_event())
