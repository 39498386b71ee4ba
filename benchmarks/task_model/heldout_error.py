"""Held-out masked MSE of models that learned from different shares of one store, on the same cells and positions.

    python benchmarks/task_model/heldout_error.py --config work/run/config.yaml --store work/atlas MODEL ...

Splits are by a hash of the cell, so the held-out cells of ``--config`` are held out of every run on the store with a
larger ``validation_share`` too. Prints a line of JSON a model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from cellfoundry_data.store import open_store
from cellfoundry_model.checkpoint import load_model
from cellfoundry_training.config import load_config
from cellfoundry_training.evaluation import evaluate, turns
from cellfoundry_training.gene_means import gene_sums
from cellfoundry_training.objective import EVALUATION_STEP, mask_batch
from cellfoundry_training.splits import heldout_batches, heldout_cells, mean_cells


def main() -> None:
    """Evaluate each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument(
        "--config", required=True, type=Path, help="whose held-out cells, genes' means and masks count"
    )
    parser.add_argument("--store", required=True, type=Path)
    given = parser.parse_args()
    config, store = load_config(str(given.config)), open_store(str(given.store))
    genes, cpu = len(store.vocabulary.genes), torch.device("cpu")
    means = gene_sums(mean_cells(store, config), config, genes)
    for path in given.models:
        loaded = load_model(path)
        found = evaluate(
            loaded.model,
            turns(heldout_batches(heldout_cells(store, config), config), 0, 1),
            lambda batch: mask_batch(batch, config, n_genes=genes, step=EVALUATION_STEP, device=cpu),
            means,
            cpu,
        )
        told = {key: value for key, value in found.record().items() if key != "by_depth"}
        learned = {name: loaded.info.get(name) for name in ("training_cells", "steps", "cells_seen")}
        print(json.dumps(learned | told), flush=True)


if __name__ == "__main__":
    main()
