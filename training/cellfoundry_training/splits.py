"""Which cells a rank trains on and which are held out."""

from __future__ import annotations

from cellfoundry_data.loader import ShardDataset
from cellfoundry_data.store import Store
from cellfoundry_training.config import PretrainConfig


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
