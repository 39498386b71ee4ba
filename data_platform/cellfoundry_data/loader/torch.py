"""A ``ShardDataset`` for torch: batches as tensors without copying, and a resumable DataLoader with workers.

Without workers, iterate over the dataset itself and call ``as_tensors``: its background thread decodes ahead, and
nothing has to travel between processes. Workers pay off where a batch takes long to prepare in Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.loader.dataset import ShardDataset


def as_tensors(batch: CellBatch) -> dict[str, Tensor]:
    """A batch as tensors that share its memory: indptr (int64, (cells + 1,)), gene_ids (int32, (nnz,)), counts
    (float32, (nnz,)), row_ids (int64, (cells,)), and the obs columns that hold numbers, "obs/NAME" (cells,).
    """
    arrays = {name: getattr(batch, name) for name in ("indptr", "gene_ids", "counts", "row_ids")}
    numbers = {f"obs/{name}": column for name, column in batch.obs.items() if column.dtype.kind in "iufb"}
    return {name: torch.from_numpy(array) for name, array in (arrays | numbers).items()}


class TorchLoader:
    """A torch DataLoader over a dataset: the same batches in the same order with any number of workers.

    Iterating goes on with the next epoch, or after ``load_state_dict`` where that state was taken; broken off, it
    begins with the same epoch's first batch again.

    Args:
        dataset: of this rank.
        workers: processes that read; 0 reads in this one.
        options: more arguments of torch's DataLoader, such as ``pin_memory`` or ``multiprocessing_context``.

    Raises:
        DataError: an option with which the batches would be others.
    """

    def __init__(self, dataset: ShardDataset, *, workers: int = 0, **options: Any) -> None:
        if options.get("persistent_workers"):
            raise DataError(
                "persistent_workers keeps copies of the dataset that know nothing of a loaded state or a chosen "
                "epoch: leave it out."
            )
        if not options.get("in_order", True):
            raise DataError(
                "in_order=False makes the order of the batches differ from run to run: leave it out."
            )
        self.dataset = dataset
        self._loader = DataLoader(_WithStates(dataset), batch_size=None, num_workers=workers, **options)
        self._state = dataset.state_dict()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        epoch = self.dataset.epoch
        batches = iter(self._loader)
        if self._loader.num_workers:
            # Their copies, made just now, are where the loaded position is used up.
            self.dataset.rewind()
        for tensors, state in batches:
            self._state = state
            yield tensors
        # With workers, it was their copies of the dataset that went through the epoch.
        self.dataset.set_epoch(epoch + 1)
        self._state = self.dataset.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands after the last batch handed out; see ``ShardDataset.state_dict``."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after that batch, with any number of ranks and workers."""
        self.dataset.load_state_dict(state)
        self._state = self.dataset.state_dict()


class _WithStates(IterableDataset[tuple[dict[str, Tensor], dict[str, Any]]]):
    """Each batch with the state of the dataset after it, which in a worker nobody else could ask for."""

    def __init__(self, dataset: ShardDataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
        for batch in self._dataset:
            yield as_tensors(batch), self._dataset.state_dict()
