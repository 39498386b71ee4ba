"""Micro-batches: equal tokens for all ranks, read ahead but not past the checkpoint, and stalls that are said."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from cellfoundry_data.errors import DataError
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.store import Store, open_store
from cellfoundry_training.batches import CellTensors, PrefetchedBatches
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.evaluation import turns
from cellfoundry_training.splits import heldout_batches, heldout_cells, train_cells
from cellfoundry_training.stalls import WINDOW_STEPS, DataStalls, warning

CPU = torch.device("cpu")
RANKS, ACCUMULATION = 2, 2


@pytest.fixture
def opened(store: Path) -> Store:
    return open_store(store)


def by_tokens(budget: int, *overrides: str) -> PretrainConfig:
    settings = ["batch_cells=null", f"batch_tokens={budget}", f"gradient_accumulation={ACCUMULATION}"]
    return load_config("tiny", [*settings, "validation_share=0.2", *overrides])


def test_ranks_get_equally_many_tokens_at_every_step(opened: Store) -> None:
    config = by_tokens(200, f"workers={RANKS}")
    of_ranks = [list(train_cells(opened, config, rank, RANKS)) for rank in range(RANKS)]
    tokens = np.array([[batch.nnz + 2 * len(batch) for batch in batches] for batches in of_ranks])
    assert tokens.shape[1] >= 10
    assert tokens.max() <= 200
    steps = (
        tokens[:, : tokens.shape[1] // ACCUMULATION * ACCUMULATION].reshape(RANKS, -1, ACCUMULATION).sum(2)
    )
    # A window's rest is dealt evenly too, though to batches that are not full.
    assert (steps.min(0) / steps.max(0)).mean() > 0.95


def test_cells_that_count_more_make_smaller_batches(opened: Store) -> None:
    light, heavy = by_tokens(400), by_tokens(400, "cell_tokens=100")
    sizes = [max(map(len, train_cells(opened, config))) for config in (light, heavy)]
    assert sizes[0] > sizes[1]
    # 30 genes and more a cell: no fourth one fits.
    assert sizes[1] == 3


def test_a_budget_below_a_cell_is_refused(opened: Store) -> None:
    with pytest.raises(DataError, match="raise batch_tokens"):
        train_cells(opened, by_tokens(20))


def test_read_ahead_hands_out_what_the_loader_would(opened: Store) -> None:
    """Over an epoch's end, with the position after what was handed out, not after what was read."""
    config = load_config("tiny", ["batch_cells=30", "validation_share=0.2"])
    plain = train_cells(opened, config)
    expected = list(itertools.islice(itertools.chain.from_iterable(itertools.repeat(plain)), 9))
    cells = train_cells(opened, config)
    with PrefetchedBatches(cells, CPU, ahead=3) as batches:
        handed = [next(batches) for _ in range(4)]
        position = batches.position
        handed += [next(batches) for _ in range(5)]
        assert batches.waited_s > 0
    for batch, tensors in zip(expected, handed, strict=True):
        assert tensors.cell_ids.tolist() == batch.row_ids.tolist()
        assert torch.equal(tensors.counts, torch.from_numpy(batch.counts))
    resumed = train_cells(opened, config)
    resumed.load_state_dict(position)
    with PrefetchedBatches(resumed, CPU) as batches:
        assert [next(batches).cell_ids.tolist() for _ in range(5)] == [
            tensors.cell_ids.tolist() for tensors in handed[4:]
        ]


def test_what_reading_raises_reaches_the_step(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = train_cells(opened, load_config("tiny", ["validation_share=0.2"]))
    with monkeypatch.context() as patch:
        patch.setattr(
            ShardDataset, "_check_store", lambda self: (_ for _ in ()).throw(DataError("torn shard"))
        )
        with PrefetchedBatches(cells, CPU) as batches, pytest.raises(DataError, match="torn shard"):
            next(batches)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_on_the_gpu(opened: Store) -> None:
    config = load_config("tiny", ["batch_cells=30", "validation_share=0.2"])
    expected = list(train_cells(opened, config))
    with PrefetchedBatches(train_cells(opened, config), torch.device("cuda")) as batches:
        for batch in expected:
            tensors = next(batches)
            assert tensors.counts.is_cuda
            assert torch.equal(tensors.counts.cpu(), CellTensors.of(batch, CPU).counts)


@pytest.mark.parametrize(
    "overrides",
    [["batch_cells=7"], ["batch_cells=30"], ["batch_cells=null", "batch_tokens=150"]],
    ids=lambda overrides: overrides[-1],
)
@pytest.mark.parametrize("ranks", [1, 3])
def test_the_heldout_cells_do_not_depend_on_batches_or_ranks(
    opened: Store, overrides: list[str], ranks: int
) -> None:
    config = load_config("tiny", ["eval_cells=25", "validation_share=0.2", *overrides])
    cells = heldout_cells(opened, config)
    of_ranks = [
        [turn.batch for turn in turns(heldout_batches(cells, config), rank, ranks) if turn.counts]
        for rank in range(ranks)
    ]
    rows = [row for batches in of_ranks for batch in batches for row in batch.row_ids.tolist()]
    first = next(iter(heldout_cells(opened, load_config("tiny", ["batch_cells=25", "validation_share=0.2"]))))
    assert sorted(rows) == sorted(first.row_ids.tolist())
    if config.batch_tokens is not None:
        assert all(batch.nnz + 2 * len(batch) <= 150 for batches in of_ranks for batch in batches)


def test_a_stall_is_said_once_a_window() -> None:
    stalls = DataStalls()
    shares = [stalls.share(waited_s=0.06, seconds=1.0) for _ in range(2 * WINDOW_STEPS)]
    assert [share is not None for share in shares].count(True) == 2
    assert shares[WINDOW_STEPS - 1] == pytest.approx(0.06)
    assert "waited for data 6%" in str(warning(0.06))
    assert warning(0.05) is None
