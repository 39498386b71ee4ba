"""BioNeMo SCDL 0.1 (memory-mapped rows) through torch's DataLoader, with its sparse collate or with none."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset
from bionemo.scdl.util.torch_dataloader_utils import collate_sparse_matrix_batch
from protocol import System, serve
from torch.utils.data import DataLoader, RandomSampler


class Scdl(System):
    """Random single rows; the batch is a torch CSR tensor, or a list of per-cell tensors without collate."""

    def prepare(self, sources: list[str], out: str) -> None:
        """The first file alone: one memory map holds one file."""
        dataset = SingleCellMemMapDataset(
            out, h5ad_path=sources[0], use_X_not_raw=True, paginated_load_cutoff=100
        )
        dataset.save()

    def open(self, path: str, batch_cells: int, collate: bool, threads: int | None = None) -> None:
        """A DataLoader without workers, so that all work is in this process; ``threads`` of torch, its own number by
        default.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        dataset = SingleCellMemMapDataset(path)
        self._loader = DataLoader(
            dataset,
            batch_size=batch_cells,
            sampler=RandomSampler(dataset, generator=torch.Generator().manual_seed(1)),
            collate_fn=collate_sparse_matrix_batch if collate else _as_it_is,
            num_workers=0,
        )

    def epoch(self) -> Iterable[Any]:
        """The DataLoader's own pass."""
        return self._loader

    def cells(self, batch: Any) -> int:
        """Rows of the tensor or cells of the list."""
        return len(batch)

    def content(self, batch: Any) -> tuple[int, int, float]:
        """A cell of a list is (counts, gene ids) stacked."""
        if isinstance(batch, list):
            return (
                len(batch),
                sum(cell.shape[1] for cell in batch),
                float(sum(cell[0].double().sum() for cell in batch)),
            )
        counts = batch.values()
        return len(batch), len(counts), float(counts.double().sum())


def _as_it_is(batch: list[Any]) -> list[Any]:
    return batch


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(Scdl())
