"""cf.tl.embed, and scanpy going on from there."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import cellfoundry as cf
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.presets import PRESETS
from cellfoundry_tasks.extra import library

GENES = [f"GENE{place}" for place in range(30)]


@pytest.mark.parametrize("kind", [str, Path])
def test_neighbors_go_on_from_the_embedding_of_a_model_directory(kind: type, tmp_path: Path) -> None:
    scanpy = library("scanpy")
    torch.manual_seed(0)
    config = ModelConfig.from_dict(PRESETS["tiny"].to_dict() | {"n_genes": len(GENES)})
    save_model(CellModel(config), GENES, tmp_path / "model", {})
    counts = np.random.default_rng(0).poisson(2.0, (60, len(GENES))).astype(np.float32)
    adata = anndata.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=GENES))
    cf.tl.embed(adata, kind(tmp_path / "model"))
    assert (adata.obsm["X_cellfoundry"] == cf.load(tmp_path / "model").encode(adata)).all()
    scanpy.pp.neighbors(adata, 5, use_rep="X_cellfoundry", transformer="sklearn")
    assert adata.uns["neighbors"]["params"]["use_rep"] == "X_cellfoundry"
    assert adata.obsp["distances"].shape == (60, 60)
