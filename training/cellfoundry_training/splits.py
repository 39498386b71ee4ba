"""Which cells a rank trains on, which are held out, and on which the gene means are computed; in what batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.store import Store
from cellfoundry_training.config import PretrainConfig

# Held-out cells are read so many at a time; what fits the device at once is cut from these.
HELDOUT_READ_CELLS = 256
MEAN_CELLS = 262_144
"""Training cells whose mean stands for that of all: of 50 million it would take each start of a run an epoch."""


def train_cells(store: Store, config: PretrainConfig, rank: int = 0, ranks: int = 1) -> ShardDataset:
    """A rank's share of the training cells in micro-batches; DataError if they do not make one optimizer step.

    A step has ``config.step_batches`` of them on any number of ranks, and the steps are the same ones. With
    ``batch_tokens`` those of one step have equally many cells of nearly equal lengths, so that no rank waits for
    another.
    """
    return _training_cells(store, config, rank, ranks, config.step_batches)


def _training_cells(
    store: Store, config: PretrainConfig, rank: int, ranks: int, whole_steps_of: int
) -> ShardDataset:
    return ShardDataset(
        store,
        batch_cells=config.batch_cells,
        batch_tokens=config.batch_tokens,
        special_tokens=config.cell_tokens,
        step_batches=config.step_batches,
        whole_steps_of=whole_steps_of,
        seed=config.seed,
        rank=rank,
        world_size=ranks,
        split="train",
        validation_share=config.validation_share,
    )


def heldout_cells(store: Store, config: PretrainConfig) -> ShardDataset:
    """All held-out cells, the same on every rank, with the probe's labels; DataError if there are none."""
    return ShardDataset(
        store,
        batch_cells=config.batch_cells or HELDOUT_READ_CELLS,
        seed=config.seed,
        split="validation",
        validation_share=config.validation_share,
        obs_columns=[config.probe_column] if config.probe_column else [],
    )


def heldout_batches(cells: ShardDataset, config: PretrainConfig) -> Iterator[CellBatch]:
    """Batches of the first ``eval_cells`` held-out cells (all if None), the same cells at every call and whatever the
    size of the batches.
    """
    cells.set_epoch(0)
    batches = first_cells(cells, config.eval_cells)
    if config.batch_tokens is not None:
        batches = itertools.chain.from_iterable(
            _within_budget(batch, config.batch_tokens, config.cell_tokens) for batch in batches
        )
    return batches


def mean_cells(store: Store, config: PretrainConfig, rank: int = 0, ranks: int = 1) -> Iterator[CellBatch]:
    """A rank's part of the first MEAN_CELLS training cells in random order, the same cells for any number of ranks."""
    return itertools.islice(
        first_cells(_training_cells(store, config, 0, 1, 1), MEAN_CELLS), rank, None, ranks
    )


def first_cells(batches: Iterable[CellBatch], limit: int | None) -> Iterator[CellBatch]:
    """Batches up to ``limit`` cells, the last one cut; all for None."""
    left = limit
    for batch in batches:
        if left is not None:
            batch = batch if len(batch) <= left else batch.select(np.arange(left))
            left -= len(batch)
        yield batch
        if left == 0:
            return


def _within_budget(batch: CellBatch, budget: int, cell_tokens: int) -> Iterator[CellBatch]:
    """``batch`` cut where another cell would exceed the budget; a cell that exceeds it alone stands alone."""
    tokens = np.diff(batch.indptr) + cell_tokens
    first, used = 0, 0
    for cell, size in enumerate(tokens):
        if used + size > budget and cell > first:
            yield batch.select(np.arange(first, cell))
            first, used = cell, 0
        used += size
    if len(batch) > first:
        yield batch.select(np.arange(first, len(batch)))
