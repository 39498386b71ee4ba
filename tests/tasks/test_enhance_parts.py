"""Parts of the read-depth enhancement whose numbers can be checked by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellfoundry_tasks.enhance.clustering import Reference, cluster_scores, clustered
from cellfoundry_tasks.enhance.gene_errors import SCORES, GeneErrors, gene_errors
from cellfoundry_tasks.enhance.gene_level import GeneLevel
from cellfoundry_tasks.enhance.peers import Scvi
from cellfoundry_tasks.enhance.rounds import thinned_round
from cellfoundry_tasks.enhance.smoothing import LOG_OF_MEAN, smoothed
from cellfoundry_tasks.enhance.tally import Tally, difference
from cellfoundry_tasks.enhance.thinning import thinned
from cellfoundry_tasks.random_state import own_random_state


def cells_of(counts: np.ndarray) -> ad.AnnData:
    var = pd.DataFrame(index=[f"GENE{gene}" for gene in range(counts.shape[1])])
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), var=var)


def test_thinning_keeps_the_share_and_never_more_than_there_was() -> None:
    full = cells_of(np.random.default_rng(0).poisson(30, (40, 50)))
    thin = thinned(full, 0.1, seed=0)
    assert thin.X.sum() / full.X.sum() == pytest.approx(0.1, rel=0.02)
    assert (full.X - thin.X).min() >= 0
    assert np.array_equal(thin.X.toarray(), np.floor(thin.X.toarray()))
    assert (thinned(full, 0.1, seed=0).X != thin.X).nnz == 0
    assert (thinned(full, 0.1, seed=1).X != thin.X).nnz > 0


def test_cells_of_which_nothing_is_left_are_not_judged() -> None:
    counts = np.zeros((30, 20))
    counts[:, 0] = 1  # half of these cells lose their only molecule
    counts[:5] = 100
    drawn = thinned_round(cells_of(counts), np.arange(30), 0.5, seed=0)
    assert 5 < len(drawn.judged) < 30
    assert drawn.true_JG.shape == (len(drawn.judged), 20)
    assert (drawn.cells.X.sum(1) > 0).all()
    assert np.allclose(np.expm1(drawn.true_JG).sum(1), 1e4, rtol=1e-4)


def test_errors_by_hand() -> None:
    total = 1e4  # so a molecule is log1p(1)
    one = np.log(2)
    true = np.array([[2.0, 1.0, 0.0, 0.0]])
    errors = gene_errors(true, np.array([[1.0, 0.2, 0.5, 0.1]]), np.array([total])).of_cells
    assert errors["mae"] == pytest.approx([(1.0 + 0.8) / 2])
    assert errors["mre"] == pytest.approx([(1.0 / 2 + 0.8 / 1) / 2])
    assert errors["mae_one"] == pytest.approx([(1.0 + (1 - one)) / 2])
    assert errors["mae_all"] == pytest.approx([(1.0 + 0.8 + 0.5 + 0.1) / 4])
    # Half a molecule is log1p(0.5) = 0.405: 0.2 and 0.1 become 0.
    assert errors["mae_all_half"] == pytest.approx([(1.0 + 1.0 + 0.5 + 0.0) / 4])
    assert errors["rmse_all"] == pytest.approx([np.sqrt((1.0 + 0.64 + 0.25 + 0.01) / 4)])
    assert errors["pcc"] == pytest.approx([1.0])
    assert errors["pcc_all"] == pytest.approx([np.corrcoef([2.0, 1.0, 0.0, 0.0], [1.0, 0.2, 0.5, 0.1])[0, 1]])


def test_a_constant_has_no_correlation_in_a_cell_and_none_over_cells() -> None:
    true = np.random.default_rng(0).uniform(1, 3, (12, 5))
    errors = gene_errors(true, np.full((12, 5), 1.7), np.full(12, 1e3))
    assert np.isnan(errors.of_cells["pcc"]).all()
    assert errors.pcc_gene == 0.0
    assert gene_errors(true, true, np.full(12, 1e3)).pcc_gene == pytest.approx(1.0)


def test_both_means_of_smoothing() -> None:
    """Of all cells, the log of the mean and the mean of logs."""
    counts = np.random.default_rng(0).poisson(3, (12, 30)) + 1
    cells = cells_of(counts)
    normal = counts / counts.sum(1, keepdims=True) * 1e4
    ((k, log_of_mean, mean_of_logs),) = smoothed(cells, np.array([3]), (500,))
    assert k == 12
    assert np.allclose(log_of_mean[0], np.log1p(normal.mean(0)), rtol=1e-4)
    assert np.allclose(mean_of_logs[0], np.log1p(normal).mean(0), rtol=1e-4)


def test_the_resolution_is_searched_for_the_number_of_clusters() -> None:
    rng = np.random.default_rng(0)
    kind = np.arange(200) % 4
    places = np.eye(4)[kind] * 20 + rng.normal(size=(200, 4))
    found = clustered(places.astype(np.float32), 4)
    scores = cluster_scores(found, Reference(kind, places.astype(np.float32), "made up"))
    assert scores["ari"] == scores["nmi"] == 1.0
    assert scores["sil"] > 0.8
    assert len(np.unique(clustered(places.astype(np.float32), 8))) == pytest.approx(8, abs=1)


def test_a_difference_is_taken_cell_by_cell() -> None:
    """Cells differ much, the two methods little: the difference is sure all the same."""
    of_cells = np.linspace(0, 100, 20)
    one, other = Tally(30), Tally(30)
    for noise in (0.01, -0.01):
        one.add(np.arange(20), GeneErrors({"mae": of_cells + 1 + noise}, 0.0))
        other.add(np.arange(20), GeneErrors({"mae": of_cells}, 0.0))
    found = difference(one, other, "mae")
    assert found is not None
    assert found.mean == pytest.approx(1.0)
    assert found.splits == 20
    assert found.high is not None
    assert found.high - found.mean < 0.01
    # Of the cells that were judged, the mean over both rounds; of the others nothing.
    assert np.allclose(one.cell_means("mae")[:20], of_cells + 1)
    assert np.isnan(one.cell_means("mae")[20:]).all()


def test_smoothing_without_a_correlation_is_never_the_best() -> None:
    """That of many neighbours may be constant in every cell."""
    level = GeneLevel(2)
    for k, pcc in ((5, 0.2), (15, 0.4), (60, np.nan)):
        tally = level.tallies[0.1, f"kNN smoothing, log of mean, k={k}"] = Tally(2)
        of_cells = {key: np.full(2, pcc if key == "pcc" else 1.0) for key in SCORES}
        tally.add(np.arange(2), GeneErrors(of_cells, np.nan))
    best = level.best_smoothing(0.1, "pcc", LOG_OF_MEAN)
    assert best is not None
    assert best[0].endswith("k=15")
    assert level.best_smoothing(0.1, "pcc_gene", LOG_OF_MEAN) is None


def test_scvi_says_the_mean_of_its_posterior() -> None:
    """Of one sample, two cells with the same counts would differ by its noise."""
    counts = np.random.default_rng(0).poisson(2.0, (40, 30))
    counts[1] = counts[0]
    scvi = Scvi(cells_of(counts), seed=0, epochs=1)
    same = scvi.expression(np.array([0, 1]))
    with own_random_state(0):
        single = np.log1p(
            scvi._model.get_normalized_expression(
                indices=np.array([0, 1]), library_size=1e4, return_numpy=True
            )
        )
    assert np.abs(same[0] - same[1]).mean() < 0.5 * np.abs(single[0] - single[1]).mean()
    assert np.allclose(np.expm1(same).sum(1), 1e4, rtol=1e-3)
