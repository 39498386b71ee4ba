"""Weighted and stratified draws against the distributions they promise; 3 of 5,000 cells are the rarest category."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy.stats import chisquare

from cellfoundry_data.errors import DataError
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.loader.order import Drawn
from cellfoundry_data.loader.sampling import Categories, WeightedDraws

from .conftest import MakeStore, random_cells

SIZES = np.array([3, 60, 700, 4237])
WEIGHTS = np.array([1.0, 2.0, 2.0, 5.0])
BATCH = 50
# Seeds are fixed, so the tests always decide the same; a right sampler fails one in a thousand.
LEAST_P = 1e-3


def codes_of(sizes: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.uint8)


CODES = codes_of(SIZES)
CATEGORIES = Categories(CODES, len(SIZES))


def draws(seed: int, *, stratified: bool = False, window_cells: int = 1000) -> WeightedDraws:
    return WeightedDraws(
        CATEGORIES,
        WEIGHTS,
        window_cells=window_cells,
        batch_cells=BATCH,
        stratified=stratified,
        seed=seed,
    )


def epoch_rows(order: WeightedDraws, number: int = 0) -> npt.NDArray[np.int64]:
    epoch = order.epoch(number)
    drawn: Drawn = ()
    parts = []
    for window in range(epoch.windows):
        rows, drawn = epoch.rows(window, drawn)
        parts.append(rows)
    return np.concatenate(parts)


@pytest.mark.parametrize("stratified", [False, True])
def test_first_batches_and_whole_epochs_have_the_asked_shares(stratified: bool) -> None:
    expected = WEIGHTS / WEIGHTS.sum()
    first, whole = np.zeros(4), np.zeros(4)
    for seed in range(300):
        rows, _ = draws(seed, stratified=stratified, window_cells=BATCH).epoch(0).rows(0, ())
        first += np.bincount(CODES[rows], minlength=4)
    for seed in range(20):
        whole += np.bincount(CODES[epoch_rows(draws(seed, stratified=stratified))], minlength=4)
    assert whole.sum() == 20 * SIZES.sum()
    assert chisquare(first, expected * first.sum()).pvalue > LEAST_P
    assert chisquare(whole, expected * whole.sum()).pvalue > LEAST_P


def test_unstratified_draws_are_independent() -> None:
    # Neighbouring draws as a 4 x 4 table against the product of the shares.
    table = np.zeros((4, 4))
    for seed in range(20):
        categories = CODES[epoch_rows(draws(seed))]
        np.add.at(table, (categories[0:-1:2], categories[1::2]), 1)
    shares = WEIGHTS / WEIGHTS.sum()
    expected = np.outer(shares, shares) * table.sum()
    assert chisquare(table.ravel(), expected.ravel()).pvalue > LEAST_P


def test_every_cell_of_a_category_is_equally_likely_to_come_first() -> None:
    came = np.zeros(len(CODES))
    for seed in range(3000):
        rows, _ = draws(seed, window_cells=BATCH).epoch(seed % 3).rows(0, ())
        present, firsts = np.unique(CODES[rows], return_index=True)
        came[rows[firsts[present < 3]]] += 1
    for category in range(3):
        times = came[category == CODES]
        assert times.sum() > 2900
        assert chisquare(times).pvalue > LEAST_P


def test_the_last_short_block_is_as_likely_as_the_others() -> None:
    # 700 cells are 10 blocks of 64 and one of 60: where a window of the middle of a pass lands.
    came = np.zeros(len(CODES))
    for seed in range(1000):
        epoch = draws(seed, window_cells=BATCH).epoch(0)
        rows, _ = epoch.rows(1, (5, 10, 300 + seed % 700, 25))
        came[rows[CODES[rows] == 2][:1]] += 1
    assert chisquare(came[CODES == 2]).pvalue > LEAST_P


@pytest.mark.parametrize("stratified", [False, True])
def test_cells_of_a_category_come_in_passes_without_replacement(stratified: bool) -> None:
    rows = epoch_rows(draws(5, stratified=stratified))
    for category, size in enumerate(SIZES):
        times = np.bincount(rows[CODES[rows] == category], minlength=len(CODES))[category == CODES]
        assert times.max() - times.min() <= 1, (category, size)


def test_a_stratified_batch_has_every_quota_rounded_up_or_down() -> None:
    rows = epoch_rows(draws(3, stratified=True))
    expected = BATCH * WEIGHTS / WEIGHTS.sum()
    for first in range(0, len(rows) // BATCH * BATCH, BATCH):
        counts = np.bincount(CODES[rows[first : first + BATCH]], minlength=4)
        assert (np.abs(counts - expected) < 1).all()
    uneven = WeightedDraws(
        CATEGORIES, np.array([0.37, 1.0, 0, 1.1]), window_cells=500, batch_cells=7, stratified=True, seed=1
    )
    batches = CODES[epoch_rows(uneven)][:4200].reshape(600, 7)
    expected = 7 * np.array([0.37, 1.0, 0, 1.1]) / 2.47
    counts = np.stack([(batches == category).sum(axis=1) for category in range(4)], axis=1)
    assert (np.abs(counts - expected) < 1).all()
    # Rounded up as often as makes the mean right: 600 batches, deviation at most 0.5 each.
    assert (np.abs(counts.mean(axis=0) - expected) < 3.3 * 0.5 / np.sqrt(600)).all()
    # No category is bound to a place in the batch.
    places = np.stack([(batches == 0).sum(axis=0)])
    assert chisquare(places.ravel()).pvalue > LEAST_P


def test_cells_are_found_by_their_number_across_spans() -> None:
    codes = codes_of(np.array([40_000, 9, 30_000]), seed=1)
    categories = Categories(codes, 3)
    for category in range(3):
        members = np.flatnonzero(codes == category)
        numbers = np.random.default_rng(category).permutation(len(members))
        np.testing.assert_array_equal(categories.rows(category, numbers), members[numbers])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore) -> Path:
    label = np.array(["rare", "some", "many"], object)[codes_of(np.array([3, 100, 897]), seed=4)]
    label[7] = None
    lot = np.arange(1000) % 4
    more = {"label": pa.array(label).dictionary_encode(), "lot": pa.array(lot)}
    return make_store(
        tmp_path_factory.mktemp("weighted") / "store", random_cells(1000, seed=3), more_obs=more
    )


def test_repeated_cells_come_with_their_own_counts(store: Path) -> None:
    dataset = ShardDataset(
        store, batch_cells=40, weights={"label": "balanced"}, obs_columns=["label"], window_chunks=20
    )
    assert dataset.n_cells == 999  # the one without a label is left out
    seen: Counter[Any] = Counter()
    for batch in dataset:
        expected = dataset.store.read_cells(batch.row_ids)
        for name in ("indptr", "gene_ids", "counts"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))
        seen.update(batch.obs["label"].tolist())
    assert sum(seen.values()) == 999
    assert chisquare([seen[label] for label in ("rare", "some", "many")]).pvalue > LEAST_P


def test_draws_respect_split_and_filter(store: Path) -> None:
    options: dict[str, Any] = {
        "batch_cells": 10,
        "where": {"tissue": ["blood", None]},
        "obs_columns": ["tissue"],
    }
    plain = ShardDataset(store, split="train", validation_share=0.4, **options)
    allowed = {int(row) for batch in plain for row in batch.row_ids}
    weighted = ShardDataset(
        store, split="train", validation_share=0.4, weights={"lot": "balanced"}, **options
    )
    drawn = {int(row) for batch in weighted for row in batch.row_ids}
    assert drawn <= allowed
    assert weighted.n_cells == plain.n_cells
    assert len(drawn) > 0.8 * len(allowed)


def test_proportional_quotas_follow_the_store(store: Path) -> None:
    dataset = ShardDataset(
        store, batch_cells=100, weights={"lot": "proportional"}, stratified=True, obs_columns=["lot"]
    )
    for batch in dataset:
        assert np.bincount(batch.obs["lot"]).tolist() == [25, 25, 25, 25]


def test_weighted_draws_fill_token_budgets_too(store: Path) -> None:
    weights = {"label": {"rare": 0.5, "some": 0.5, "many": 0}}
    dataset = ShardDataset(store, batch_tokens=2000, weights=weights, obs_columns=["label"])
    labels = [label for batch in dataset for label in batch.obs["label"]]
    assert len(labels) == dataset.n_cells == 103
    assert set(labels) == {"rare", "some"}


@pytest.mark.parametrize("values", [254, 255, 256])
def test_any_number_of_values_can_be_drawn_of_a_selection(
    tmp_path: Path, make_store: MakeStore, values: int
) -> None:
    lot = np.arange(600) % values
    store = make_store(tmp_path / "store", random_cells(600, seed=3), more_obs={"lot": pa.array(lot)})
    dataset = ShardDataset(
        store,
        batch_cells=10,
        weights={"lot": "balanced"},
        where={"source_row": (0, 399)},
        obs_columns=["lot"],
    )
    batches = list(dataset)
    assert max(int(batch.row_ids.max()) for batch in batches) < 400
    assert all((batch.obs["lot"] == lot[batch.row_ids]).all() for batch in batches)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"organ": "balanced"}}, "no obs column 'organ'"),
        ({"weights": {"label": {"rare": 1.0}}}, "weights of label lack"),
        ({"weights": {"lot": {0: 1, 1: 1, 2: 1, 3: -1}}}, "finite and not negative"),
        ({"weights": {"lot": {0: 1, 1: 1, 2: 1, 3: float("nan")}}}, "finite and not negative"),
        ({"weights": {"lot": {0: 0, 1: 0, 2: 0, 3: 0}}}, "no cell has a value of lot with a weight"),
        ({"weights": {"lot": {0: 1, 1: 1, 2: 1, 3: 1, 9: 1}}}, "which no cell of the store has as its lot"),
        ({"weights": {"lot": "even"}}, "'balanced' or 'proportional'"),
        ({"weights": {"lot": "balanced", "label": "balanced"}}, "one obs column"),
        ({"stratified": True}, "stratified batches need weights"),
    ],
)
def test_wrong_weights_get_one_sentence(store: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ShardDataset(store, batch_cells=10, **options)
