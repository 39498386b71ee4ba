"""Reused memory: a batch that somebody holds never changes, and reading does not grow with the store."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.loader.torch import as_tensors
from cellfoundry_data.loader.windows import POOLED, BufferPool
from cellfoundry_data.store import Store, open_store

from .conftest import MakeStore, random_cells


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore) -> Store:
    return open_store(make_store(tmp_path_factory.mktemp("memory") / "store", random_cells(1001, seed=5)))


def assert_intact(store: Store, batch: CellBatch) -> None:
    expected = store.read_cells(batch.row_ids)
    for name in ("indptr", "gene_ids", "counts"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))


def test_held_batches_stay_as_they_were(store: Store) -> None:
    dataset = ShardDataset(store, batch_cells=10, window_chunks=8)
    held = [batch for epoch in range(3) for batch in dataset]
    for batch in held:
        assert_intact(store, batch)


def test_every_kind_of_reference_keeps_a_batch_as_it_was(store: Store) -> None:
    dataset = ShardDataset(store, batch_cells=10, window_chunks=8)
    tensors, views, memories, copies = [], [], [], []
    rows = []
    for number, batch in enumerate(dataset):
        if number % 7 == 0:
            rows.append(batch.row_ids.copy())
            tensors.append(as_tensors(batch)["gene_ids"][3:].view(-1))
            views.append(batch.counts[1:][::2].view(np.int32))
            memories.append(memoryview(batch.counts))  # type: ignore[arg-type]
            copies.append(torch.from_dlpack(batch.counts))
    for which, tensor, view, memory, shared in zip(rows, tensors, views, memories, copies, strict=True):
        expected = store.read_cells(which)
        np.testing.assert_array_equal(tensor.numpy(), expected.gene_ids[3:])
        np.testing.assert_array_equal(view.view(np.float32), expected.counts[1:][::2])
        np.testing.assert_array_equal(np.asarray(memory), expected.counts)
        np.testing.assert_array_equal(shared.numpy(), expected.counts)


def test_tensors_share_the_memory_of_the_batch(store: Store) -> None:
    batch = next(iter(ShardDataset(store, batch_cells=10, obs_columns=["source_row", "tissue"])))
    tensors = as_tensors(batch)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "indptr": torch.int64,
        "gene_ids": torch.int32,
        "counts": torch.float32,
        "row_ids": torch.int64,
        "obs/source_row": torch.int64,
    }
    assert tensors["counts"].data_ptr() == batch.counts.ctypes.data
    assert tensors["obs/source_row"].tolist() == batch.row_ids.tolist()


def test_memory_is_reused_when_nobody_holds_it(store: Store) -> None:
    # 21 windows. Batches of one cell never lie in two of them, so each is a view.
    owners = {
        id(batch.counts.base) if batch.counts.base is not None else 0
        for batch in ShardDataset(store, batch_cells=1, window_chunks=8)
    }
    assert len(owners) <= POOLED


def test_the_pool_gives_away_only_what_is_idle_and_keeps_three() -> None:
    pool = BufferPool()
    first = pool.take(100)
    view = first[1][10:20]
    del first
    second = pool.take(100)
    assert not np.shares_memory(second[1], view)
    address = second[0].ctypes.data
    del second
    assert pool.take(112)[0].ctypes.data == address
    held = [pool.take(50) for _ in range(9)]
    assert len({buffer[0].ctypes.data for buffer in held}) == 9
    assert len(pickle.dumps(pool)) < 200


def test_only_codes_and_bits_are_held_for_the_whole_store(tmp_path: Path, make_store: MakeStore) -> None:
    store = open_store(make_store(tmp_path / "store", random_cells(3000, seed=1, mean_nnz=5)))
    dataset = ShardDataset(
        store,
        batch_cells=10,
        where={"tissue": ["blood", "pancreas"]},
        split="train",
        weights={"tissue": "balanced"},
        obs_columns=["tissue"],
    )
    held = sum(array.nbytes for array in arrays_below(dataset) if len(array) >= 300)
    # A byte a cell for the weights, one for the handed out column, a bit for the selection.
    assert held <= 3000 * 2 + 3000 // 8 + 100 * store.n_chunks


def arrays_below(thing: object, seen: set[int] | None = None) -> list[np.ndarray]:
    """Arrays that an object of the loader refers to, the store's own left out."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, Store):
        return []
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return [thing]
    parts: list[object] = []
    if isinstance(thing, dict):
        parts = list(thing.values())
    elif isinstance(thing, list | tuple):
        parts = list(thing)
    elif type(thing).__module__.startswith("cellfoundry_data"):
        parts = list(vars(thing).values())
    return [array for part in parts for array in arrays_below(part, seen)]
