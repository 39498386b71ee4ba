"""A few real cells of the bundled donor, and a small model with random weights over some of their genes."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_model.config import ModelConfig
from cellfoundry_training.finetune.config import build_config
from cellfoundry_training.finetune.run import finetune

GENES = 200
KINDS = ("acinar", "alpha", "beta", "ductal")


@pytest.fixture(scope="session")
def few_cells(baron_h5ad: Path) -> ad.AnnData:
    """40 cells each of four types, raw counts of all 20,125 genes."""
    donor = ad.read_h5ad(baron_h5ad)
    rng = np.random.default_rng(0)
    rows = [rng.choice(np.flatnonzero(donor.obs["cell_type"] == kind), 40, replace=False) for kind in KINDS]
    return donor[np.sort(np.concatenate(rows))].copy()


@pytest.fixture(scope="session")
def small_model(few_cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights over the cells' most expressed genes."""
    total = np.asarray(few_cells.X.sum(0)).ravel()
    genes = few_cells.var_names[np.sort(np.argsort(-total)[:GENES])].tolist()
    config = ModelConfig(
        n_genes=GENES,
        bins=6,
        bin_alpha=1.0,
        mask_token_id=102,
        pad_token_id=103,
        encoder_width=16,
        encoder_depth=2,
        encoder_heads=2,
        decoder_width=8,
        decoder_depth=1,
        decoder_heads=1,
        decoder_head_dim=8,
        favor_features=8,
    )
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("tasks") / "model"
    save_model(CellModel(config), genes, out, {"origin": "a test"})
    return out


@pytest.fixture(scope="session")
def finetuned_model(
    few_cells: ad.AnnData, small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The small model after its last encoder layer learned the cells' types."""
    out = tmp_path_factory.mktemp("tasks") / "finetuned"
    config = build_config({"label": "cell_type", "tune": "last", "last": 1, "max_epochs": 1})
    finetune(small_model, few_cells, out, config)
    return out
