"""The loader: one order for any number of ranks, resumable anywhere, every cell once."""

from __future__ import annotations

import hashlib
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.store import open_store

from .conftest import MakeStore, random_cells

# 1,001 cells in 16 batches of 60 and one of 41; windows of 4 chunks hold about 25 cells, fewer than a batch.
N_CELLS = 1001
BATCH = 60


@pytest.fixture(scope="module")
def cells() -> CellBatch:
    return random_cells(N_CELLS, seed=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore, cells: CellBatch) -> Path:
    return make_store(tmp_path_factory.mktemp("loader") / "store", cells)


def rows_of(batches: list[CellBatch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.row_ids]


def content_hash(batches: list[CellBatch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for array in (batch.indptr, batch.gene_ids, batch.counts, batch.row_ids):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def interleaved(store: Path, world_size: int, epochs: int = 1, **options: object) -> list[CellBatch]:
    """The batches of all ranks in the order in which the ranks' steps take them."""
    ranks = [
        ShardDataset(store, batch_cells=BATCH, rank=rank, world_size=world_size, **options)  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    merged: list[CellBatch] = []
    for epoch in range(epochs):
        shares = []
        for dataset in ranks:
            dataset.set_epoch(epoch)
            shares.append(list(dataset))
            assert len(shares[-1]) == len(dataset)
        merged += [batch for step in zip(*shares, strict=True) for batch in step]
    return merged


@pytest.mark.parametrize("window_chunks", [4, 40, 10_000])
def test_every_cell_comes_exactly_once_an_epoch_with_its_own_counts(
    store: Path, cells: CellBatch, window_chunks: int
) -> None:
    dataset = ShardDataset(store, batch_cells=BATCH, window_chunks=window_chunks)
    batches = list(dataset)
    assert [len(batch) for batch in batches] == [60] * 16 + [41]
    assert sorted(rows_of(batches)) == list(range(N_CELLS))
    for batch in batches:
        expected = cells.select(batch.row_ids)
        np.testing.assert_array_equal(batch.indptr, expected.indptr)
        np.testing.assert_array_equal(batch.gene_ids, expected.gene_ids)
        np.testing.assert_array_equal(batch.counts, expected.counts)
        assert (batch.gene_ids.dtype, batch.counts.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize("world_size", [2, 4, 16])
@pytest.mark.parametrize("window_chunks", [4, 40])
def test_the_order_does_not_depend_on_the_number_of_ranks(
    store: Path, world_size: int, window_chunks: int
) -> None:
    alone = list(ShardDataset(store, batch_cells=BATCH, seed=3, window_chunks=window_chunks))
    together = interleaved(store, world_size, seed=3, window_chunks=window_chunks)
    assert len(together) == 16 // world_size * world_size
    assert content_hash(together) == content_hash(alone[: len(together)])


@pytest.mark.parametrize("batch_cells", [91, 143, 250])  # 1,001 is 11 x 91, 7 x 143, and 4 x 250 and one more
@pytest.mark.parametrize("window_chunks", [4, 10_000])
@pytest.mark.parametrize("weights", [None, {"tissue": {"blood": 1, "pancreas": 2, None: 1}}])
def test_the_ranks_of_a_step_have_as_many_cells(
    store: Path, batch_cells: int, window_chunks: int, weights: dict[str, Any] | None
) -> None:
    for world_size in (2, 3, 4):
        for rank in range(world_size):
            dataset = ShardDataset(
                store,
                batch_cells=batch_cells,
                window_chunks=window_chunks,
                rank=rank,
                world_size=world_size,
                weights=weights,
            )
            batches = [len(batch) for batch in dataset]
            assert batches == [batch_cells] * (dataset.n_cells // batch_cells // world_size)
            assert len(batches) == len(dataset)


def test_the_order_changes_with_seed_and_epoch_and_repeats_with_both(store: Path) -> None:
    orders = {}
    for seed in (0, 1):
        dataset = ShardDataset(store, batch_cells=BATCH, seed=seed)
        for epoch in (0, 1):
            assert dataset.epoch == epoch
            orders[seed, epoch] = rows_of(list(dataset))
    assert len({tuple(order) for order in orders.values()}) == 4
    again = ShardDataset(store, batch_cells=BATCH, seed=1)
    again.set_epoch(1)
    assert rows_of(list(again)) == orders[1, 1]
    assert abs(np.corrcoef(orders[0, 0], np.arange(N_CELLS))[0, 1]) < 0.15


def test_the_order_is_the_same_on_every_machine(store: Path) -> None:
    # A change of this number breaks the resuming of every run that is under way.
    first = next(iter(ShardDataset(store, batch_cells=5, seed=11)))
    assert first.row_ids.tolist() == FIRST_ROWS_OF_SEED_11


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 3), (4, 2)])
def test_resuming_at_any_batch_goes_on_where_it_stopped(store: Path, before: int, after: int) -> None:
    epochs = 2
    whole = [rows_of([batch]) for batch in interleaved(store, 1, epochs=epochs, window_chunks=9)]
    per_epoch = len(whole) // epochs
    for steps in range((17 if before == 1 else 16) // before + 1):
        for epoch in range(epochs):
            saved = ShardDataset(store, batch_cells=BATCH, rank=0, world_size=before, window_chunks=9)
            saved.set_epoch(epoch)
            stopped = list(islice(iter(saved), steps))
            assert len(stopped) == steps
            state = saved.state_dict()

            resumed = []
            for rank in range(after):
                dataset = ShardDataset(store, batch_cells=BATCH, rank=rank, world_size=after, window_chunks=9)
                dataset.load_state_dict(pickle.loads(pickle.dumps(state)))
                dataset.set_epoch(dataset.epoch)
                resumed.append([rows_of([batch]) for batch in islice(iter(dataset), 2)])
            start = epoch * per_epoch + steps * before
            # The short batch is one rank's only.
            if (17 if after == 1 else 16) - steps * before < after:
                start = (epoch + 1) * per_epoch
            for step in range(min(len(share) for share in resumed)):
                for rank in range(after):
                    if start + step * after + rank < len(whole):
                        assert resumed[rank][step] == whole[start + step * after + rank]


def test_a_state_of_another_dataset_is_refused(store: Path) -> None:
    state = ShardDataset(store, batch_cells=BATCH).state_dict()
    with pytest.raises(DataError, match=r"order was None .* and is 2 now"):
        ShardDataset(store, batch_cells=60).load_state_dict(
            {name: value for name, value in state.items() if name != "order"}
        )
    with pytest.raises(DataError, match=r"batch_cells was 60 .* and is 50 now"):
        ShardDataset(store, batch_cells=50).load_state_dict(state)


def test_split_is_disjoint_complete_and_independent_of_seed_epoch_and_ranks(store: Path) -> None:
    def members(split: str, **options: int) -> set[int]:
        dataset = ShardDataset(store, batch_cells=1, split=split, validation_share=0.2, **options)  # type: ignore[arg-type]
        return set(rows_of(list(dataset)))

    train, validation = members("train"), members("validation")
    assert train.isdisjoint(validation)
    assert train | validation == set(range(N_CELLS))
    assert 0.15 < len(validation) / N_CELLS < 0.25
    assert members("validation", seed=9) == validation
    assert (
        members("validation", rank=0, world_size=2) | members("validation", rank=1, world_size=2)
        <= validation
    )


def test_obs_columns_come_with_their_cells(store: Path) -> None:
    obs = open_store(store).obs
    for batch in ShardDataset(store, batch_cells=BATCH, obs_columns=["tissue", "source_row"]):
        np.testing.assert_array_equal(batch.obs["source_row"], batch.row_ids)
        assert batch.obs["tissue"].tolist() == [obs["tissue"][row].as_py() for row in batch.row_ids.tolist()]


def test_pickles(store: Path) -> None:
    dataset = ShardDataset(store, batch_cells=BATCH, seed=4)
    copy = pickle.loads(pickle.dumps(dataset))
    assert content_hash(list(copy)) == content_hash(list(dataset))


def test_damage_is_noticed_while_reading(tmp_path: Path, make_store: MakeStore, cells: CellBatch) -> None:
    damaged = make_store(tmp_path / "store", cells)
    path = damaged / "shards/00001/gene_delta/c/0/0"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="shard 00001"):
        list(ShardDataset(damaged, batch_cells=BATCH))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_cells": 0}, "at least 1"),
        ({"batch_cells": 60, "rank": 2, "world_size": 2}, "ranks count from 0"),
        ({"batch_cells": 60, "split": "test"}, "split 'test' is unknown"),
        ({"batch_cells": 60, "split": "train", "validation_share": 1.0}, "between 0 and 1"),
        ({"batch_cells": 60, "obs_columns": ["organ"]}, "no obs column 'organ'"),
        ({"batch_cells": 600, "world_size": 4}, "too few for a batch"),
        ({"batch_cells": 60, "where": "blood"}, "where is 'blood': give filters as"),
        ({"batch_cells": 60, "weights": "balanced"}, "weights must name one obs column"),
    ],
)
def test_a_wrong_argument_gets_one_sentence(store: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ShardDataset(store, **options)  # type: ignore[arg-type]


FIRST_ROWS_OF_SEED_11 = [0, 452, 277, 177, 42]
