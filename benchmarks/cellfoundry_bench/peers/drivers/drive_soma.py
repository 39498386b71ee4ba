"""TileDB-SOMA-ML 0.1: ExperimentDataset with its default I/O batch and shuffle chunk, sparse batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import anndata
import numpy as np
import tiledbsoma
import tiledbsoma.io
from protocol import System, serve
from tiledbsoma_ml import ExperimentDataset, experiment_dataloader


class Soma(System):
    """An experiment of the first ``cells`` cells; batches are (CSR matrix, obs)."""

    def prepare(self, sources: list[str], out: str, cells: int) -> None:
        """The first ``cells`` cells of the first file: conversion is slow and reading does not depend on it."""
        first = anndata.read_h5ad(sources[0], backed="r")[:cells].to_memory()
        tiledbsoma.io.from_anndata(out, first, measurement_name="RNA", X_layer_name="data")

    def open(self, path: str, batch_cells: int) -> None:
        """Defaults of the package: 65,536 rows an I/O batch, shuffle chunks of 64, eager fetch."""
        self._experiment = tiledbsoma.Experiment.open(path)
        self._dataset = ExperimentDataset(
            self._experiment.axis_query("RNA"),
            layer_name="data",
            batch_size=batch_cells,
            shuffle=True,
            seed=1,
            return_sparse_X=True,
        )
        self._epoch = 0

    def epoch(self) -> Iterable[Any]:
        """A DataLoader's pass over the next epoch, without workers."""
        self._dataset.set_epoch(self._epoch)
        self._epoch += 1
        return experiment_dataloader(self._dataset, num_workers=0)

    def cells(self, batch: Any) -> int:
        """Rows of the CSR matrix."""
        return batch[0].shape[0]

    def content(self, batch: Any) -> tuple[int, int, float]:
        """Of the CSR matrix."""
        counts = batch[0]
        return counts.shape[0], counts.nnz, float(counts.data.sum(dtype=np.float64))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(Soma())
