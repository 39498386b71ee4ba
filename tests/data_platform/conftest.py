"""Small stores for the data layer's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store.cell_keys import cell_keys
from cellfoundry_data.store.format import Profile, Values
from cellfoundry_data.store.replace import replacing_store
from cellfoundry_data.store.writer import finish_store, start_store, write_shard
from cellfoundry_data.vocabulary import Vocabulary

N_GENES = 3000


def normalised(cells: CellBatch) -> CellBatch:
    """The cells with values that are no whole numbers."""
    return replace(cells, counts=np.log1p(cells.counts * np.float32(0.37)))


def random_cells(n_cells: int, *, seed: int = 0, mean_nnz: int = 60) -> CellBatch:
    """Synthetic cells with wide gaps between genes and a few huge counts, so that every escape occurs."""
    rng = np.random.default_rng(seed)
    lengths = rng.poisson(mean_nnz, n_cells)
    genes = [np.sort(rng.choice(N_GENES, size, replace=False)) for size in lengths]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    counts = rng.geometric(0.05, indptr[-1]).astype(np.float32)
    counts[rng.random(len(counts)) < 0.01] *= 4096
    return CellBatch(
        indptr.astype(np.int64),
        np.concatenate(genes).astype(np.int32),
        counts,
        np.arange(n_cells, dtype=np.int64),
    )


MakeStore = Callable[..., Path]


@pytest.fixture(scope="session")
def make_store() -> MakeStore:
    """Write cells in memory as a store of several shards, in the order given; small chunks, so that there are
    many.
    """

    def make(
        path: Path,
        cells: CellBatch,
        *,
        shards: int = 3,
        chunk_nnz: int = 400,
        seed: int = 0,
        more_obs: dict[str, pa.Array] | None = None,
        values: Values = "counts",
        profile: Profile = "compact",
    ) -> Path:
        vocabulary = Vocabulary(tuple(f"GENE{number}" for number in range(N_GENES)))
        keys = cell_keys(0, np.arange(len(cells)))
        tissue = np.array(["pancreas", "blood", None], object)[np.arange(len(cells)) % 3]
        obs = pa.table(
            {
                "source": pa.array(["synthetic"] * len(cells)).dictionary_encode(),
                "source_row": np.arange(len(cells)),
                "cell_name": [f"cell{row}" for row in range(len(cells))],
                "tissue": pa.array(tissue).dictionary_encode(),
                **(more_obs or {}),
            }
        )
        with replacing_store(path) as folder:
            start_store(folder, vocabulary)
            entries = []
            for number, rows in enumerate(np.array_split(np.arange(len(cells)), shards)):
                part = obs.slice(rows[0], len(rows))
                shard = cells.select(rows)
                entries.append(
                    write_shard(
                        folder,
                        f"{number:05d}",
                        shard,
                        keys[rows],
                        part,
                        chunk_nnz,
                        values=values,
                        profile=profile,
                    )
                )
            finish_store(
                folder,
                vocabulary,
                entries,
                seed=seed,
                qc={"min_genes": 0},
                sources=[],
                values=values,
                profile=profile,
            )
        return path

    return make


WriteSource = Callable[..., str]


@pytest.fixture(scope="session")
def write_source() -> WriteSource:
    """Write counts as h5ad, cells named after the file; gives the path as text."""

    def write(path: Path, counts: sp.csr_matrix, genes: list[str], **obs: Any) -> str:
        names = [f"{path.stem}_{row}" for row in range(counts.shape[0])]
        frame = pd.DataFrame(obs, index=names)
        adata = anndata.AnnData(counts.astype(np.float32), obs=frame, var=pd.DataFrame(index=genes))
        adata.write_h5ad(path)
        return str(path)

    return write
