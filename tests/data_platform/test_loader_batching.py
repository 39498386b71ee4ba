"""Token budgets: no batch beyond the budget, every cell once, and ranks that wait for nobody."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data.errors import DataError
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.loader.batching import TokenBudget, deal

from .conftest import MakeStore, random_cells

BUDGET = 1000
Lengths = npt.NDArray[np.int64]


def cut(
    lengths: Lengths, budget: int = BUDGET, special: int = 0, first_number: int = 0, step_batches: int = 8
) -> list[Lengths]:
    """Lengths of the cells of each batch of one window, in order."""
    batching = TokenBudget(budget, special, step_batches, lambda rows: lengths[rows])
    batches = batching.cut(np.arange(len(lengths)), 0, first_number, np.uint64(7))
    assert sorted(batches.rows.tolist()) == list(range(len(lengths)))
    numbers = np.unique(batches.number)
    np.testing.assert_array_equal(numbers, np.arange(first_number, batches.next_number))
    return [lengths[batches.rows[batches.number == number]] + special for number in numbers]


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, BUDGET), max_size=400),
    special=st.integers(0, 3),
    first_number=st.integers(0, 20),
    step_batches=st.integers(1, 20),
)
def test_every_cell_once_and_never_more_than_the_budget(
    lengths: list[int], special: int, first_number: int, step_batches: int
) -> None:
    batches = cut(np.array(lengths, np.int64), BUDGET + special, special, first_number, step_batches)
    assert all(len(batch) and batch.sum() <= BUDGET + special for batch in batches)


@settings(max_examples=100, deadline=None)
@given(cells=st.integers(0, 50), hands=st.integers(1, 9))
def test_dealing_gives_every_hand_the_same_number_of_cells(cells: int, hands: int) -> None:
    dealt = deal(np.arange(cells), hands)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(cells))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize("first_number", [0, 3, 7])
def test_the_batches_of_a_step_cost_the_same(first_number: int) -> None:
    # Lengths as in tissue: 1,600 genes, a quarter beyond 2,100, some of 6,000.
    rng = np.random.default_rng(0)
    lengths = rng.gamma(4.0, 400.0, 7800).astype(np.int64) + 100
    batches = cut(lengths, 131_072, 1, first_number)
    steps = [batches[first : first + 8] for first in range(-first_number % 8, len(batches) - 7, 8)]
    # All but the last step, which holds the middle of the window and goes on in the next one.
    for step in steps[:-1]:
        tokens = np.array([batch.sum() for batch in step])
        squares = np.array([(batch.astype(float) ** 2).sum() for batch in step])
        assert tokens.max() / tokens.mean() < 1.02
        assert squares.max() / squares.mean() < 1.05
        assert len({len(batch) for batch in step}) == 1
    filled = sum(batch.sum() for batch in batches) / (131_072 * len(batches))
    assert filled > 0.97


def test_windows_join_in_cells_of_middle_length() -> None:
    lengths = np.random.default_rng(1).gamma(4.0, 400.0, 7800).astype(np.int64) + 100
    middle = np.quantile(lengths, [0.25, 0.75])
    batches = cut(lengths, 131_072, 0, first_number=3)
    for batch in batches[: -3 % 8]:
        assert middle[0] < np.median(batch) < middle[1]


@pytest.mark.parametrize("step_batches", [3, 8, 16])
def test_over_an_epoch_no_rank_waits_where_a_step_has_as_many_batches(step_batches: int) -> None:
    rng = np.random.default_rng(2)
    batches: list[Lengths] = []
    for _ in range(6):
        lengths = rng.gamma(4.0, 400.0, 7800).astype(np.int64) + 100
        batches += cut(lengths, 65_536, 1, len(batches), step_batches)
    squares = np.array([(batch.astype(float) ** 2).sum() for batch in batches])
    steps = squares[: len(squares) // step_batches * step_batches].reshape(-1, step_batches)
    assert steps.mean() / steps.max(axis=1).mean() > 0.97
    assert sum(batch.sum() for batch in batches) / (65_536 * len(batches)) > 0.97


@pytest.mark.parametrize("step_batches", [3, 5, 8])
@pytest.mark.parametrize("first_number", range(8))
def test_groups_begin_at_multiples_counted_from_the_beginning_of_the_epoch(
    step_batches: int, first_number: int
) -> None:
    # Short and long cells only: a batch in the middle of a group would hold others than its neighbours.
    lengths = np.repeat([10, 490], [3000, 60])
    batches = cut(lengths, BUDGET, 0, first_number, step_batches)
    for first in range(-first_number % step_batches, len(batches) - 2 * step_batches, step_batches):
        assert len({len(batch) for batch in batches[first : first + step_batches]}) == 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore) -> Path:
    return make_store(tmp_path_factory.mktemp("tokens") / "store", random_cells(1001, seed=2))


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_an_epoch_has_every_cell_once_except_the_last_broken_step(store: Path, world_size: int) -> None:
    alone = [
        batch.row_ids.tolist()
        for batch in ShardDataset(store, batch_tokens=900, special_tokens=2, window_chunks=40)
    ]
    assert sorted(row for batch in alone for row in batch) == list(range(1001))
    ranks = [
        list(
            ShardDataset(
                store,
                batch_tokens=900,
                special_tokens=2,
                window_chunks=40,
                rank=rank,
                world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]
    together = [batch.row_ids.tolist() for step in zip(*ranks, strict=True) for batch in step]
    assert together == alone[: len(alone) // world_size * world_size]
    for batch in (batch for share in ranks for batch in share):
        assert batch.nnz + 2 * len(batch) <= 900


def test_a_resumed_run_keeps_the_groups_of_its_ranks(store: Path) -> None:
    def ranks() -> list[ShardDataset]:
        settings: dict[str, Any] = {"batch_tokens": 900, "window_chunks": 40, "step_batches": 3}
        return [ShardDataset(store, rank=rank, world_size=3, **settings) for rank in range(3)]

    def steps(datasets: list[ShardDataset]) -> list[list[list[int]]]:
        return [[batch.row_ids.tolist() for batch in step] for step in zip(*datasets, strict=True)]

    whole = steps(ranks())
    stopped = ranks()[1]
    list(islice(stopped, 4))
    resumed = ranks()
    for dataset in resumed:
        dataset.load_state_dict(stopped.state_dict())
    assert steps(resumed) == whole[4:]


def test_step_batches_are_part_of_what_a_state_fits(store: Path) -> None:
    state = ShardDataset(store, batch_tokens=900).state_dict()
    with pytest.raises(DataError, match="step_batches was 8"):
        ShardDataset(store, batch_tokens=900, step_batches=4).load_state_dict(state)
    with pytest.raises(DataError, match="step_batches and window_chunks must be at least 1"):
        ShardDataset(store, batch_tokens=900, step_batches=0)


def test_a_cell_beyond_the_budget_is_named_with_the_remedy(store: Path) -> None:
    with pytest.raises(DataError, match=r"the cell in row \d+ has \d+ tokens and batch_tokens is 40.*where="):
        ShardDataset(store, batch_tokens=40)


def test_the_length_of_an_epoch_of_token_batches_is_not_known(store: Path) -> None:
    with pytest.raises(TypeError, match="not known"):
        len(ShardDataset(store, batch_tokens=900))


def test_one_size_of_a_batch_is_asked_for(store: Path) -> None:
    for cells, tokens in ((None, None), (5, 900)):
        with pytest.raises(DataError, match="either batch_cells or batch_tokens"):
            ShardDataset(store, batch_cells=cells, batch_tokens=tokens)
