"""annbatch 0.3 with the zarrs codec pipeline, as its documentation recommends for speed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import anndata
import numpy as np
import zarr
from annbatch import DatasetCollection, Loader
from protocol import System, serve


class Annbatch(System):
    """Conversion shuffles the cells on disk; reading draws ``preload_nchunks`` chunks of ``chunk_size`` rows."""

    def prepare(self, sources: list[str], out: str) -> None:
        """Pre-shuffled zarr with the package's defaults."""
        DatasetCollection(out).add_adatas(adata_paths=sources, shuffle=True, rng=np.random.default_rng(0))

    def open(self, path: str, batch_cells: int, chunk_size: int, preload_nchunks: int) -> None:
        """X alone: gene ids and counts, no obs, as the others."""
        self._loader = Loader(
            batch_size=batch_cells,
            chunk_size=chunk_size,
            preload_nchunks=preload_nchunks,
            shuffle=True,
            preload_to_gpu=False,
            to=None,
            rng=np.random.default_rng(1),
        )
        self._loader.use_collection(DatasetCollection(path, mode="r"), load_adata=_only_counts)

    def epoch(self) -> Iterable[Any]:
        """The loader's own pass."""
        return self._loader

    def cells(self, batch: Any) -> int:
        """Rows of the CSR matrix."""
        return batch["X"].shape[0]

    def content(self, batch: Any) -> tuple[int, int, float]:
        """Of the CSR matrix."""
        counts = batch["X"]
        return counts.shape[0], counts.nnz, float(counts.data.sum(dtype=np.float64))


def _only_counts(group: zarr.Group) -> anndata.AnnData:
    return anndata.AnnData(
        X=anndata.io.sparse_dataset(group["X"]), obs=anndata.io.read_elem(group["obs"])[[]]
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    serve(Annbatch())
