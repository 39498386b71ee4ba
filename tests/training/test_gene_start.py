"""Genes that vary together begin near each other, on every rank of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store import open_store
from cellfoundry_model.checkpoint import load_model
from cellfoundry_model.value_embedding import EMBEDDING_STD
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.gene_start import gene_components
from cellfoundry_training.pretrain import pretrain
from cellfoundry_training.splits import mean_cells

from .conftest import run_config

CELLS, GENES, PROGRAMS, WIDTH = 300, 60, 3, 8


def cells_of_programs() -> CellBatch:
    """Each cell runs one of three programs of 18 genes; the last six genes are never expressed."""
    random = np.random.default_rng(0)
    rate = np.full((CELLS, GENES), 0.2)
    for cell in range(CELLS):
        program = cell % PROGRAMS
        rate[cell, 18 * program : 18 * program + 18] = 4
    rate[:, 54:] = 0
    counts = sp.csr_matrix(random.poisson(rate).astype(np.float32))
    return CellBatch(counts.indptr, counts.indices, counts.data, np.arange(CELLS))


def test_genes_of_a_program_begin_near_each_other() -> None:
    start_GD = gene_components([cells_of_programs()], GENES, WIDTH, seed=3)
    assert start_GD.shape == (GENES, WIDTH)
    expressed = start_GD[:54]
    assert expressed.std() == pytest.approx(EMBEDDING_STD, rel=0.3)
    assert np.abs(start_GD[54:]).max() < EMBEDDING_STD
    distance = np.linalg.norm(expressed[:, None] - expressed[None], axis=2)
    program = np.arange(54) // 18
    same = (program[:, None] == program[None]) & ~np.eye(54, dtype=bool)
    assert distance[same].mean() < 0.85 * distance[program[:, None] != program[None]].mean()


def test_the_seed_decides_and_the_batches_do_not() -> None:
    cells = cells_of_programs()
    halves = [cells.select(np.arange(100)), cells.select(np.arange(100, CELLS))]
    first = gene_components([cells], GENES, WIDTH, seed=3)
    np.testing.assert_allclose(gene_components(halves, GENES, WIDTH, seed=3), first, atol=1e-5)
    assert not np.allclose(gene_components([cells], GENES, WIDTH, seed=4), first, atol=1e-2)


def test_too_few_cells_are_refused() -> None:
    few = cells_of_programs().select(np.arange(WIDTH - 2))
    with pytest.raises(TrainingError, match="6 components cannot be computed from 6 training cells"):
        gene_components([few], GENES, WIDTH, seed=0)
    with pytest.raises(TrainingError, match=r"60 components cannot be computed .* of 60 genes"):
        gene_components([cells_of_programs()], GENES, GENES + 2, seed=0)


def test_a_run_begins_with_them_on_all_ranks(ray_local: None, store: Path, tmp_path: Path) -> None:
    settings = ("gene_start=components", "learning_rate=1e-12", "max_steps=1", "eval_every_steps=1")
    config = run_config(*settings, "checkpoint_every_steps=1")
    model = load_model(pretrain(config, store, tmp_path / "run").model_dir).model
    opened = open_store(store)
    genes = len(opened.vocabulary.genes)
    expected = gene_components(
        mean_cells(opened, config), genes, model.config.encoder_width, seed=config.seed
    )
    table = model.position_embedding.weight.detach().numpy()[:genes]
    np.testing.assert_allclose(table, expected, atol=1e-6)
