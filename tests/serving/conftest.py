"""A small model over a real but short vocabulary, its ONNX export, and an endpoint around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from forty_cells import N_CELLS
from soak_server import CONFIG, GENES

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_serving.endpoint.server import running
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export import export_model
from cellfoundry_serving.export.check import random_cells
from cellfoundry_serving.export.tensorrt_api import import_tensorrt
from cellfoundry_serving.parts import plan


def tensorrt_is_installed() -> bool:
    try:
        import_tensorrt()
    except ServingError:
        return False
    return True


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("serving") / "model"
    save_model(CellModel(CONFIG), GENES, out, {})
    return out


@pytest.fixture(scope="session")
def onnx_dir(model_dir: Path) -> Path:
    """Exported once: the exporter takes seconds."""
    out = model_dir.parent / "onnx"
    export_model(model_dir, out, "onnx")
    return out


@pytest.fixture(scope="session")
def engine(model_dir: Path) -> Engine:
    return open_engine(model_dir, "torch")


@pytest.fixture(scope="session")
def url(engine: Engine) -> Iterator[str]:
    with running(engine) as url:
        yield url


@pytest.fixture
def cells() -> CellBatch:
    """Nine cells of very different lengths; the fourth and the last have no counts."""
    return random_cells(CONFIG.n_genes, (5, 1, 200, 0, 37, 400, 2, 90, 0), seed=1)


@pytest.fixture
def adata(cells: CellBatch) -> AnnData:
    """The same cells, with obs of every kind."""
    counts = sp.csr_matrix((cells.counts, cells.gene_ids, cells.indptr), shape=(len(cells), CONFIG.n_genes))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(["alpha", "beta", "delta"] * 3),
            "depth": np.arange(9) / 2,
            "cell": [f"c{row % 2}" for row in range(9)],
        },
        index=[f"barcode{row}" for row in range(9)],
    )
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=list(GENES)))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of eight cells."""
    monkeypatch.setattr(plan, "PART_CELLS", 8)


@pytest.fixture
def atlas(engine: Engine, tmp_path: Path) -> Path:
    """Forty cells of four types, five parts of eight; the third cell has no counts, the fourth no type."""
    rng = np.random.default_rng(0)
    counts = sp.random(
        N_CELLS, CONFIG.n_genes, 0.05, format="lil", rng=rng, data_rvs=lambda n: rng.geometric(0.3, n)
    )
    counts[2] = 0
    types = pd.Series([f"type {row % 4}" for row in range(N_CELLS)], dtype=object)
    types[3] = None
    obs = pd.DataFrame({"cell_type": types.to_numpy()}, index=[f"c{row}" for row in range(N_CELLS)])
    adata = AnnData(
        counts.tocsr().astype(np.float32), obs=obs, var=pd.DataFrame(index=list(engine.vocab_genes))
    )
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    return tmp_path / "atlas.h5ad"
