"""Splits and filters against the obs table itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data.errors import DataError
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.loader.selection import Selection, group_key
from cellfoundry_data.store import open_store

from .conftest import MakeStore, random_cells

N_CELLS = 900


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore) -> Path:
    rng = np.random.default_rng(0)
    donor = np.array([f"donor{number}" for number in range(40)] + [None], object)[
        rng.integers(0, 41, N_CELLS)
    ]
    age = rng.integers(20, 80, N_CELLS).astype(np.float64)
    # Shards differ in the values that they have, and only the first has a gap in its whole numbers.
    lot = pa.array([None if row == 5 else row // 100 for row in range(N_CELLS)], pa.int64())
    more = {
        "donor": pa.array(donor).dictionary_encode(),
        "age": pa.array(np.where(rng.random(N_CELLS) < 0.1, np.nan, age)),
        "lot": lot,
        "healthy": pa.array(rng.random(N_CELLS) < 0.5),
        "part": pa.array([f"part{row // 300}" for row in range(N_CELLS)]).dictionary_encode(),
    }
    return make_store(
        tmp_path_factory.mktemp("selection") / "store", random_cells(N_CELLS, seed=3), more_obs=more
    )


def rows_of(store: Path, **options: Any) -> set[int]:
    dataset = ShardDataset(store, batch_cells=1, **options)
    rows = [int(row) for batch in dataset for row in batch.row_ids]
    assert len(rows) == len(set(rows)) == dataset.n_cells == len(dataset)
    return set(rows)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"tissue": "blood"}, lambda obs: obs.tissue == "blood"),
        ({"tissue": ["blood", None]}, lambda obs: (obs.tissue == "blood") | obs.tissue.isna()),
        ({"tissue": None}, lambda obs: obs.tissue.isna()),
        ({"part": ["part0", "part2"]}, lambda obs: obs.part != "part1"),
        ({"age": (30, 50)}, lambda obs: (obs.age >= 30) & (obs.age <= 50)),
        ({"age": [33.0, None]}, lambda obs: (obs.age == 33) | obs.age.isna()),
        ({"lot": 3}, lambda obs: obs.lot == 3),
        ({"lot": (2, np.inf)}, lambda obs: obs.lot >= 2),
        ({"healthy": True}, lambda obs: obs.healthy),
        (
            {"healthy": False, "tissue": "blood", "lot": [1, 2, 3]},
            lambda obs: ~obs.healthy & (obs.tissue == "blood") & obs.lot.isin([1, 2, 3]),
        ),
    ],
)
def test_filters_keep_what_the_obs_table_says(store: Path, where: dict[str, Any], expected: Any) -> None:
    obs = open_store(store).obs_frame()
    assert rows_of(store, where=where) == set(np.flatnonzero(expected(obs)).tolist())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"organ": "blood"}, "no obs column 'organ'"),
        ({"tissue": "lung"}, r"no cell of .* has tissue in 'lung'"),
        ({"tissue": 3}, "tissue holds text, so it can not be filtered by 3"),
        ({"tissue": (1, 2)}, "tissue holds no numbers"),
        ({"age": "old"}, "age holds numbers, so it can not be filtered by 'old'"),
        ({"age": True}, "age holds numbers"),
        ({"age": (1, 2, 3)}, r"pair \(low, high\)"),
        ({"age": ("a", "b")}, r"pair \(low, high\)"),
        ({"healthy": "yes"}, "healthy holds true or false"),
        ({"lot": 1, "part": "part2"}, "is left"),
    ],
)
def test_a_wrong_filter_gets_one_sentence(store: Path, where: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ShardDataset(store, batch_cells=1, where=where)


def test_split_by_donor_keeps_donors_whole_whatever_the_seed(store: Path) -> None:
    donors = open_store(store).obs["donor"].to_pylist()
    sides = {
        side: rows_of(store, split=side, split_by="donor", validation_share=0.3)
        for side in ("train", "validation")
    }
    assert sides["train"].isdisjoint(sides["validation"])
    assert sides["train"] | sides["validation"] == set(range(N_CELLS))
    donors_of = {side: {donors[row] for row in rows} for side, rows in sides.items()}
    assert donors_of["train"].isdisjoint(donors_of["validation"])
    assert 5 <= len(donors_of["validation"]) <= 20
    assert (
        rows_of(store, split="validation", split_by="donor", validation_share=0.3, seed=5)
        == sides["validation"]
    )


def test_a_donor_stays_on_its_side_in_another_store(
    store: Path, tmp_path: Path, make_store: MakeStore
) -> None:
    more = {"donor": pa.array([f"donor{number % 40}" for number in range(200)]).dictionary_encode()}
    other = make_store(tmp_path / "other", random_cells(200, seed=9), more_obs=more)

    def validation_donors(path: Path) -> set[str]:
        dataset = ShardDataset(
            path,
            batch_cells=1,
            split="validation",
            split_by="donor",
            validation_share=0.3,
            obs_columns=["donor"],
        )
        return {batch.obs["donor"][0] for batch in dataset} - {None}

    assert validation_donors(other) == validation_donors(store)


def test_a_split_and_a_filter_combine(store: Path) -> None:
    train = rows_of(store, split="train", validation_share=0.4)
    blood = rows_of(store, where={"tissue": "blood"})
    assert rows_of(store, where={"tissue": "blood"}, split="train", validation_share=0.4) == train & blood


def test_numbers_split_too(store: Path) -> None:
    lots = open_store(store).obs_frame()["lot"]
    train = rows_of(store, split="train", split_by="lot", validation_share=0.5)
    assert {lots[row] for row in train}.isdisjoint({lots[row] for row in set(range(N_CELLS)) - train})


def test_a_number_is_the_same_group_where_gaps_made_it_a_float() -> None:
    assert group_key(3.0) == group_key(3) != group_key(3.5)


@settings(max_examples=100, deadline=None)
@given(cells=st.lists(st.booleans(), min_size=1, max_size=300))
def test_a_selection_is_the_set_it_was_made_of(cells: list[bool]) -> None:
    chosen = np.array(cells)
    selection = Selection(chosen)
    np.testing.assert_array_equal(selection.cells(len(cells)), chosen)
    np.testing.assert_array_equal(selection.holds(np.arange(len(cells))), chosen)
    assert len(selection) == chosen.sum()


def test_whole_numbers_with_gaps_are_exact_or_refused(tmp_path: Path, make_store: MakeStore) -> None:
    # Only the last of the three shards has a gap.
    small = [*range(58), None, 2**53 - 1]
    large = [*range(58), None, 2**53 + 1]
    full = [*range(59), 2**53 + 1]
    more = {name: pa.array(column) for name, column in (("small", small), ("large", large), ("full", full))}
    store = make_store(tmp_path / "store", random_cells(60, seed=1), more_obs=more)
    for batch in ShardDataset(store, batch_cells=60, obs_columns=["small", "full"]):
        for row, low, high in zip(batch.row_ids, batch.obs["small"], batch.obs["full"], strict=True):
            assert (None if np.isnan(low) else int(low)) == small[row]
            assert int(high) == full[row]
    refused: list[dict[str, Any]] = [{"obs_columns": ["large"]}, {"split": "train", "split_by": "large"}]
    for options in refused:
        with pytest.raises(DataError, match=r"the obs column large .* ingest the column as text"):
            ShardDataset(store, batch_cells=60, **options)
