"""Resuming at any batch: the rest of the run is the same, and nothing before it is read or planned again."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain, cycle, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellfoundry_data.errors import DataError
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.loader.order import ShuffledEpoch
from cellfoundry_data.loader.sampling import DrawnEpoch
from cellfoundry_data.store import Store, open_store

from .conftest import MakeStore, random_cells

EPOCHS = 3
# What is asked for, and how many of the 500 offsets it gets. Windows of 9 chunks hold about 57 cells.
MODES: dict[str, tuple[int, dict[str, Any]]] = {
    "cells": (125, {"batch_cells": 30}),
    "tokens": (125, {"batch_tokens": 700, "special_tokens": 1}),
    "weighted": (100, {"batch_cells": 30, "weights": {"tissue": {"blood": 5, "pancreas": 1, None: 0.1}}}),
    "stratified": (50, {"batch_cells": 30, "weights": {"tissue": "balanced"}, "stratified": True}),
    "weighted tokens": (50, {"batch_tokens": 1500, "weights": {"tissue": "balanced"}}),
    "filtered": (
        50,
        {"batch_cells": 16, "where": {"tissue": "blood"}, "split": "train", "validation_share": 0.3},
    ),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore) -> Store:
    return open_store(make_store(tmp_path_factory.mktemp("resume") / "store", random_cells(601, seed=5)))


def whole_run(store: Store, world_size: int, options: dict[str, Any]) -> list[list[list[int]]]:
    """Rows of every batch of some epochs in the order in which steps take them: epoch, batch, row."""
    ranks = [
        ShardDataset(store, rank=rank, world_size=world_size, window_chunks=9, **options)
        for rank in range(world_size)
    ]
    return [
        [batch.row_ids.tolist() for step in zip(*ranks, strict=True) for batch in step] for _ in range(EPOCHS)
    ]


def saved_states(store: Store, world_size: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The state before the first batch of each epoch and after every batch of the last rank, as JSON keeps it."""
    dataset = ShardDataset(store, rank=world_size - 1, world_size=world_size, window_chunks=9, **options)
    states = []
    for _ in range(EPOCHS - 1):
        states.append(json.dumps(dataset.state_dict()))
        states += [json.dumps(dataset.state_dict()) for _ in dataset]
    return [json.loads(state) for state in states]


def for_ranks(epoch: list[list[int]], world_size: int, options: dict[str, Any]) -> list[list[int]]:
    """One rank's batches of an epoch without the short one, which several ranks are not given."""
    short = world_size > 1 and len(epoch[-1]) < options.get("batch_cells", 0)
    return epoch[:-1] if short else epoch


@pytest.mark.parametrize("mode", MODES)
def test_resuming_at_500_offsets_goes_on_where_it_stopped(store: Store, mode: str) -> None:
    offsets, options = MODES[mode]
    alone = whole_run(store, 1, options)
    assert {len(epoch) for epoch in alone} != {0}
    rng = np.random.default_rng(len(mode))
    states = {world_size: saved_states(store, world_size, options) for world_size in (1, 2, 3)}
    ranks = {
        world_size: [
            ShardDataset(store, rank=rank, world_size=world_size, window_chunks=9, **options)
            for rank in range(world_size)
        ]
        for world_size in (1, 2, 4)
    }
    past_the_end = 0
    for _ in range(offsets):
        before, after = int(rng.choice([1, 2, 3])), int(rng.choice([1, 2, 4]))
        state = states[before][rng.integers(len(states[before]))]
        epoch, start = state["epoch"], state["batches"]
        if len(for_ranks(alone[epoch], after, options)) - start < after:
            past_the_end += 1
            epoch, start = epoch + 1, 0
        expected = for_ranks(alone[epoch], after, options)[start : start + 2 * after]
        resumed = []
        for dataset in ranks[after]:
            dataset.load_state_dict(state)
            assert dataset.epoch == epoch
            resumed.append([batch.row_ids.tolist() for batch in islice(dataset, 2)])
        steps = len(expected) // after
        assert [batch for step in zip(*resumed, strict=True) for batch in step] == expected[: steps * after]
    assert past_the_end > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_goes_through_the_ends_of_epochs(store: Store, mode: str) -> None:
    options = MODES[mode][1]
    alone = whole_run(store, 2, options)
    states = saved_states(store, 2, options)
    state = states[len(states) // 4]
    ranks = [ShardDataset(store, rank=rank, world_size=2, window_chunks=9, **options) for rank in (0, 1)]
    for dataset in ranks:
        dataset.load_state_dict(state)
    rest = [
        [batch.row_ids.tolist() for step in zip(*ranks, strict=True) for batch in step]
        for _ in range(state["epoch"], EPOCHS)
    ]
    alone[state["epoch"]] = alone[state["epoch"]][state["batches"] :]
    assert rest == alone[state["epoch"] :]


@pytest.mark.parametrize("mode", ["cells", "tokens", "weighted"])
def test_steps_of_many_batches_are_the_same_on_any_number_of_ranks(store: Store, mode: str) -> None:
    """Begun on 3 ranks, which do not divide the step, and gone on with from any of its steps on 1, 2, 4 and 5."""
    options, step = MODES[mode][1], 5

    def ranks(world_size: int) -> list[ShardDataset]:
        return [
            ShardDataset(
                store, rank=rank, world_size=world_size, whole_steps_of=step, window_chunks=9, **options
            )
            for rank in range(world_size)
        ]

    def take(datasets: list[ShardDataset], steps: int) -> list[list[list[int]]]:
        """Rows of the batches of some steps, over the ends of epochs, in their order."""
        own = [chain.from_iterable(repeat(dataset)) for dataset in datasets]
        turns = list(islice(cycle(range(len(own))), step))
        return [[next(own[rank]).row_ids.tolist() for rank in turns] for _ in range(steps)]

    alone = take(ranks(1), 20)
    epoch = [
        row for batches in alone[: len(whole_run(store, 1, options)[0]) // step] for row in chain(*batches)
    ]
    if mode != "weighted":
        assert len(epoch) == len(set(epoch))
    for done in range(1, 12, 3):
        begun = ranks(3)
        assert take(begun, done) == alone[:done]
        states = [dataset.state_dict() for dataset in begun]
        assert all(state["batches"] == states[0]["batches"] for state in states)
        for world_size in (1, 2, 4, 5):
            resumed = ranks(world_size)
            for dataset in resumed:
                dataset.load_state_dict(json.loads(json.dumps(states[0])))
            assert take(resumed, 3) == alone[done : done + 3]


def test_a_step_with_fewer_batches_than_ranks_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="whole_steps_of 2 must be at least world_size 3"):
        ShardDataset(store, batch_cells=4, world_size=3, whole_steps_of=2)


@pytest.mark.parametrize("mode", MODES)
def test_the_work_of_resuming_does_not_grow_with_the_offset(
    store: Store, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            done.append(name)
            return original(*arguments)

        return call

    dataset = ShardDataset(store, window_chunks=9, **MODES[mode][1])
    states = [dataset.state_dict() for _ in dataset]
    for owner, name in (
        (Store, "decode_chunks"),
        (Store, "chunk_row_nnz"),
        (ShuffledEpoch, "rows"),
        (DrawnEpoch, "rows"),
    ):
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    most = []
    for state in states[:-1]:
        done.clear()
        dataset.load_state_dict(state)
        batches = iter(dataset)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        most.append({name: done.count(name) for name in ("decode_chunks", "rows", "chunk_row_nnz")})
    # The windows that the batch lies in (up to 3 of the filtered ones) and the one decoded ahead.
    assert max(work["decode_chunks"] for work in most) <= 4
    assert max(work["rows"] for work in most) <= 6
    assert max(work["chunk_row_nnz"] for work in most) <= 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_cells": 31}, "batch_cells was 30 .* and is 31 now"),
        ({"where": {"tissue": "blood"}}, "where was"),
        ({"weights": {"tissue": "balanced"}}, "weights was"),
        ({"split": "train", "split_by": "tissue"}, "split was"),
    ],
)
def test_a_state_of_other_settings_is_refused(store: Store, change: dict[str, Any], message: str) -> None:
    state = ShardDataset(store, batch_cells=30).state_dict()
    with pytest.raises(DataError, match=message):
        ShardDataset(store, **{"batch_cells": 30, **change}).load_state_dict(state)


def test_a_state_of_another_store_of_equal_size_is_refused(
    store: Store, tmp_path: Path, make_store: MakeStore
) -> None:
    state = ShardDataset(store, batch_cells=30).state_dict()
    same = make_store(tmp_path / "same", random_cells(601, seed=5))
    ShardDataset(same, batch_cells=30).load_state_dict(state)
    other = make_store(tmp_path / "other", random_cells(601, seed=6))
    with pytest.raises(DataError, match=r"store_shards was .* when the state was saved"):
        ShardDataset(other, batch_cells=30).load_state_dict(state)
