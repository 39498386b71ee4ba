"""The held-out error of the sampled decoder through six decoder layers, as many as the published shape has.

    CELLFOUNDRY_BENCH_STORE=atlas.cells python benchmarks/soak/sampled_six_layers.py --seeds 2 --out result.json

`cellfoundry bench run context` compares a small model with one decoder layer over rates and seeds, in which an error of
the sampled context does not go on to a next layer. This is the same comparison through six: for each seed one run with
the full decoder and one a rate, on the same cells and masks from the same weights, all evaluated by the full decoder.
A run with the full decoder takes about 1,300 CPU-seconds on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cellfoundry_bench.context.training import train
from cellfoundry_bench.suites.context import LEARNER, chosen_store, sampled
from cellfoundry_data.store import Store
from cellfoundry_training.config import load_config
from cellfoundry_training.gene_means import gene_sums
from cellfoundry_training.splits import mean_cells

LAYERS = 6
STEPS = 750  # of four cells


def runs_of(
    store: Store, seed: int, rates: tuple[float | None, ...], steps: int = STEPS
) -> list[dict[str, Any]]:
    """One run a rate (None: the full decoder): its held-out masked MSE, that of the genes' means, and what it took."""
    settings = (*LEARNER, f"model.decoder_depth={LAYERS}", f"max_steps={steps}", f"seed={seed}")
    config = load_config("tiny", settings)
    means = gene_sums(mean_cells(store, config), config, len(store.vocabulary.genes))
    runs = []
    for rate in rates:
        began = time.process_time()
        learnt = train(store, sampled(config, rate), means, torch.device("cpu"))
        runs.append(
            {
                "seed": seed,
                "rate": rate,
                "heldout_mse": learnt.heldout.loss,
                "gene_means_mse": learnt.heldout.gene_mean_loss,
                "cells": learnt.cells,
                "cpu_s": time.process_time() - began,
            }
        )
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    return runs


def over_full(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over the seeds of each rate's error over that of the full decoder of the same seed."""
    full = {run["seed"]: run["heldout_mse"] for run in runs if run["rate"] is None}
    rates = sorted({run["rate"] for run in runs if run["rate"] is not None})
    ratios = {
        rate: [run["heldout_mse"] / full[run["seed"]] for run in runs if run["rate"] == rate]
        for rate in rates
    }
    return {str(rate): sum(values) / len(values) for rate, values in ratios.items()}


def main() -> None:
    """Runs and writes what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with chosen_store() as store:
        runs = [
            run for seed in range(arguments.seeds) for run in runs_of(store, seed, (None, *arguments.rates))
        ]
    result = {
        "soak": "the sampled decoder through six layers",
        "decoder_layers": LAYERS,
        "heldout_mse_over_full": over_full(runs),
        "runs": runs,
    }
    text = json.dumps(result, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
