"""The imputer votes with real neighbours: far better than gene means where cells come in kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels import MaskedCells
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.gene_means import gene_sums
from cellfoundry_training.knn_imputer import KnnImputer
from cellfoundry_training.objective import EVALUATION_STEP, mask_batch

GENES, KINDS = 60, 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config() -> PretrainConfig:
    return load_config("tiny", [])


def cells_in_kinds(cells: int, seed: int, first_row: int = 0) -> CellBatch:
    """Cells of three kinds, each with a third of the genes high."""
    rng = np.random.default_rng(seed)
    kind_C = rng.integers(0, KINDS, cells)
    rates_CG = np.where(kind_C[:, None] == np.arange(GENES) % KINDS, 60.0, 2.0)
    dense_CG = rng.poisson(rates_CG)
    cell, gene = np.nonzero(dense_CG)
    indptr = np.concatenate([[0], np.cumsum((dense_CG > 0).sum(1))]).astype(np.int64)
    counts = dense_CG[cell, gene].astype(np.float32)
    return CellBatch(indptr, gene.astype(np.int32), counts, np.arange(cells) + first_row)


def masked(batch: CellBatch, config: PretrainConfig) -> MaskedCells:
    return mask_batch(batch, config, n_genes=GENES, step=EVALUATION_STEP, device=CPU)


def test_neighbours_beat_gene_means_where_cells_come_in_kinds(config: PretrainConfig) -> None:
    training, heldout = cells_in_kinds(400, 0), cells_in_kinds(80, 1, first_row=400)
    imputer = KnnImputer([training], lambda batch: masked(batch, config), config, GENES)
    asked = masked(heldout, config)
    votes, target_X = imputer.votes(heldout, asked), asked.target_X.numpy()
    mean_G = gene_sums([training], config, GENES).objective_mean_G
    error = {
        name: float(np.square(vote_X - target_X).mean())
        for name, vote_X in (
            ("plain", votes.plain_X),
            ("weighted", votes.weighted_X),
            ("stacked", votes.stacked_X),
            ("gene mean", mean_G[asked.mask_position_X.numpy()]),
        )
    }
    assert max(error["plain"], error["weighted"], error["stacked"]) < 0.5 * error["gene mean"]


def test_plain_votes_are_means_of_the_nearest_training_cells(config: PretrainConfig) -> None:
    """Kinds that never overlap: whoever the neighbours are, they are of the cell's own kind."""
    training = cells_in_kinds(90, 2)
    imputer = KnnImputer([training], lambda batch: masked(batch, config), config, GENES)
    heldout = cells_in_kinds(20, 3, first_row=90)
    asked = masked(heldout, config)
    plain_X = imputer.votes(heldout, asked).plain_X
    dense_CG = np.zeros((20, GENES))
    dense_CG[np.repeat(np.arange(20), np.diff(heldout.indptr)), heldout.gene_ids] = heldout.counts
    kind_C = np.array([dense_CG[:, kind::KINDS].sum(1) for kind in range(KINDS)]).argmax(0)
    cell_X, gene_X = asked.mask_cell_index_X.numpy(), asked.mask_position_X.numpy()
    is_high_X = gene_X % KINDS == kind_C[cell_X]
    assert is_high_X.any()
    assert plain_X[is_high_X].min() > plain_X[~is_high_X].max()


def test_the_order_of_held_out_cells_does_not_matter(config: PretrainConfig) -> None:
    training, heldout = cells_in_kinds(120, 4), cells_in_kinds(30, 5, first_row=120)
    imputer = KnnImputer([training], lambda batch: masked(batch, config), config, GENES)
    backwards = heldout.select(np.arange(30)[::-1].copy())
    found = {}
    for batch in (heldout, backwards):
        asked = masked(batch, config)
        rows = batch.row_ids[asked.mask_cell_index_X.numpy()]
        keys = list(zip(rows.tolist(), asked.mask_position_X.tolist(), strict=True))
        for key, vote in zip(keys, imputer.votes(batch, asked).stacked_X.tolist(), strict=True):
            assert vote == pytest.approx(found.setdefault(key, vote), rel=1e-6)
