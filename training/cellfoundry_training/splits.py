"""Which cells a rank trains on, which are held out, and on which the gene means are computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.store import Store
from cellfoundry_training.config import PretrainConfig

MEAN_CELLS = 262_144
"""Training cells whose mean stands for that of all: of 50 million it would take each start of a run an epoch."""


def train_cells(store: Store, config: PretrainConfig, rank: int = 0, ranks: int = 1) -> ShardDataset:
    """A rank's share of the training cells; DataError if they do not make one batch for every rank."""
    return ShardDataset(
        store,
        batch_cells=config.batch_cells,
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
        batch_cells=config.batch_cells,
        seed=config.seed,
        split="validation",
        validation_share=config.validation_share,
        obs_columns=[config.probe_column] if config.probe_column else [],
    )


def mean_cells(store: Store, config: PretrainConfig, rank: int = 0, ranks: int = 1) -> Iterator[CellBatch]:
    """A rank's part of the first MEAN_CELLS training cells in random order, the same cells for any number of ranks."""
    return itertools.islice(first_cells(train_cells(store, config), MEAN_CELLS), rank, None, ranks)


def first_cells(batches: Iterable[CellBatch], max_cells: int | None) -> Iterator[CellBatch]:
    """Batches up to the one that reaches ``max_cells``; all for None."""
    cells = 0
    for batch in batches:
        yield batch
        cells += len(batch)
        if max_cells is not None and cells >= max_cells:
            return
