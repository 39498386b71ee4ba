"""The same batches in the same order whatever the ranks, the DataLoader's workers, forks and Ray processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from cellfoundry_data.errors import DataError
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.loader.torch import TorchLoader

from .conftest import MakeStore, random_cells

OPTIONS: dict[str, dict[str, Any]] = {
    "cells": {"batch_cells": 9},
    "tokens": {"batch_tokens": 700},
    "weighted": {"batch_cells": 9, "weights": {"tissue": "balanced"}},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_store: MakeStore) -> Path:
    return make_store(tmp_path_factory.mktemp("workers") / "store", random_cells(601, seed=5))


def dataset_of(store: Path, rank: int, world_size: int, mode: str) -> ShardDataset:
    return ShardDataset(store, rank=rank, world_size=world_size, window_chunks=20, seed=3, **OPTIONS[mode])


def order_hash(batches: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for rows in batches:
        digest.update(np.asarray(rows, np.int64).tobytes() + b"|")
    return digest.hexdigest()


# More processes than cores are slow, not wrong.
@pytest.mark.filterwarnings("ignore:This DataLoader will create . worker")
@pytest.mark.parametrize(
    ("mode", "world_size", "workers"),
    [
        *(("cells", world_size, workers) for world_size in (1, 2, 4, 8) for workers in (0, 1, 8)),
        *((mode, 2, workers) for mode in ("tokens", "weighted") for workers in (0, 1, 3)),
    ],
)
def test_order_hash_is_equal_for_ranks_and_workers(
    store: Path, mode: str, world_size: int, workers: int
) -> None:
    whole = [batch.row_ids for batch in dataset_of(store, 0, 1, mode)]
    loaders = [
        TorchLoader(dataset_of(store, rank, world_size, mode), workers=workers) for rank in range(world_size)
    ]
    shares = [[batch["row_ids"].clone().numpy() for batch in loader] for loader in loaders]
    together = [rows for step in zip(*shares, strict=True) for rows in step]
    if world_size > 1 and mode != "tokens" and len(whole[-1]) < 9:
        whole.pop()  # several ranks are not given the short batch
    assert order_hash(together) == order_hash(whole[: len(whole) // world_size * world_size])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", OPTIONS)
def test_a_loader_with_workers_resumes_and_goes_on_with_the_next_epoch(
    store: Path, mode: str, workers: int
) -> None:
    plain = dataset_of(store, 0, 2, mode)
    epochs = [[batch.row_ids.tolist() for batch in plain] for _ in range(3)]
    loader = TorchLoader(dataset_of(store, 0, 2, mode), workers=workers)
    assert [batch["row_ids"].tolist() for batch in loader] == epochs[0]
    first = [batch["row_ids"].tolist() for batch in islice(loader, 5)]
    assert first == epochs[1][:5]
    resumed = TorchLoader(dataset_of(store, 0, 2, mode), workers=2 - workers)
    resumed.load_state_dict(pickle.loads(pickle.dumps(loader.state_dict())))
    assert [batch["row_ids"].tolist() for batch in resumed] == epochs[1][5:]
    assert [batch["row_ids"].tolist() for batch in resumed] == epochs[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_that_is_broken_off_begins_anew(store: Path, workers: int) -> None:
    whole = [batch.row_ids.tolist() for batch in dataset_of(store, 0, 1, "cells")]
    loader = TorchLoader(dataset_of(store, 0, 1, "cells"), workers=workers)
    list(islice(loader, 5))
    loader.load_state_dict(loader.state_dict())
    assert [batch["row_ids"].tolist() for batch in islice(loader, 3)] == whole[5:8]
    assert loader.state_dict()["batches"] == 8
    assert [batch["row_ids"].tolist() for batch in loader] == whole


@pytest.mark.parametrize("option", [{"persistent_workers": True}, {"in_order": False}])
def test_options_that_change_the_batches_are_refused(store: Path, option: dict[str, bool]) -> None:
    with pytest.raises(DataError, match="leave it out"):
        TorchLoader(dataset_of(store, 0, 1, "cells"), workers=2, **option)


def rows_of(dataset: ShardDataset) -> list[list[int]]:
    return [batch.row_ids.tolist() for batch in dataset]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_the_same_while_this_one_reads_on(store: Path, method: str) -> None:
    dataset = dataset_of(store, 0, 1, "cells")
    expected = rows_of(dataset_of(store, 0, 1, "cells"))
    running = iter(dataset)
    begun = [next(running).row_ids.tolist()]
    # A pool fails when its process dies; waiting on a queue would not end.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as child:
        assert child.submit(rows_of, dataset).result() == expected
    assert begun + [batch.row_ids.tolist() for batch in running] == expected


def test_a_store_replaced_after_pickling_is_noticed(tmp_path: Path, make_store: MakeStore) -> None:
    path = make_store(tmp_path / "store", random_cells(60, seed=1))
    pickled = pickle.dumps(ShardDataset(path, batch_cells=9))
    make_store(path, random_cells(80, seed=2))
    with pytest.raises(DataError, match="was replaced after this dataset was made"):
        list(pickle.loads(pickled))


def test_ray_processes_see_every_cell_once(store: Path, ray_local: None) -> None:
    import ray

    @ray.remote(num_cpus=1)
    def rows(path: str, rank: int, world_size: int) -> list[int]:
        from cellfoundry_data.loader import ShardDataset

        dataset = ShardDataset(path, batch_cells=1, rank=rank, world_size=world_size)
        return [int(row) for batch in dataset for row in batch.row_ids]

    shares = ray.get([rows.remote(str(store), rank, 2) for rank in range(2)])
    assert len(shares[0]) == len(shares[1]) == 300
    together = shares[0] + shares[1]
    assert len(set(together)) == 600


def test_a_store_behind_a_url_gives_the_same_batches(store: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(store), "/loader/store", recursive=True)
    try:
        for mode in OPTIONS:
            expected = order_hash(batch.row_ids for batch in dataset_of(store, 0, 1, mode))
            remote = ShardDataset(
                "memory://loader/store", window_chunks=20, seed=3, cache=tmp_path, **OPTIONS[mode]
            )
            assert order_hash(batch.row_ids for batch in remote) == expected
    finally:
        memory.rm("/loader", recursive=True)
