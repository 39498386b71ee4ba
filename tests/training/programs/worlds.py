"""Steps of real DeepSpeed engines on worlds of 1, 2 and 4 gloo processes, without Ray: ``worlds.py STORE FOLDER``.

Processes are forked after the imports, which cost more than the steps. Rank 0 of each world leaves a JSON file.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"

import deepspeed  # noqa: F401  # for the children
import torch
import torch.distributed as dist

from cellfoundry_data.store import open_store
from cellfoundry_model.architecture import CellModel
from cellfoundry_training.batches import CellTensors, PrefetchedBatches
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.engine import full_weights, start_engine, time_collectives
from cellfoundry_training.objective import Masking
from cellfoundry_training.skipped_steps import skipped_record
from cellfoundry_training.splits import train_cells
from cellfoundry_training.step import GlobalStep, StepOutcome
from cellfoundry_training.step_clock import StepClock

CPU = torch.device("cpu")
SMALL = (
    "encoder_width=16",
    "encoder_heads=2",
    "encoder_ffn_width=32",
    "decoder_width=16",
    "decoder_ffn_width=32",
)
MICRO_BATCHES, STEPS, RATE = 4, 5, 1e-2


class World:
    """One rank with its model, engine and cells."""

    def __init__(self, store: str, rank: int, ranks: int, *overrides: str) -> None:
        model = [f"model.{setting}" for setting in SMALL]
        accumulation = f"gradient_accumulation={MICRO_BATCHES // ranks}"
        self.config: PretrainConfig = load_config(
            "tiny", [*model, f"workers={ranks}", "batch_cells=2", accumulation, *overrides]
        )
        opened = open_store(store)
        architecture = self.config.architecture(len(opened.vocabulary.genes))
        torch.manual_seed(0)
        self.engine = start_engine(CellModel(architecture), self.config, CPU)
        self.clock = StepClock(CPU)
        time_collectives(self.clock)
        masking = Masking.of(self.config, architecture.n_genes)
        self.step = GlobalStep(self.engine, architecture, masking, self.clock, ranks)
        self.cells = train_cells(opened, self.config, rank, ranks)

    def take(self, micro: list[CellTensors], step: int, rate: float = RATE) -> StepOutcome:
        self.clock.start("data")
        return self.step.run(micro, step, rate)


def losses(store: str, rank: int, ranks: int) -> Any:
    """Losses of a few steps, the same global batches in every world, and the phases of the last one."""
    world = World(store, rank, ranks, "zero_stage=1")
    outcomes = []
    with PrefetchedBatches(world.cells, CPU, ahead=2) as batches:
        for step in range(1, STEPS + 1):
            micro = [next(batches) for _ in range(MICRO_BATCHES // ranks)]
            outcomes.append(world.take(micro, step))
    return {
        "losses": [outcome.loss for outcome in outcomes],
        "last": asdict(outcomes[-1]),
        "phases": world.clock.seconds(),
    }


def skips(store: str, rank: int, ranks: int) -> Any:
    """Of every ZeRO stage and precision: a step with a count of NaN on rank 1, between two that are sound."""
    report = {}
    for precision in ("fp32", "bf16"):
        for stage in range(4):
            overrides = (f"zero_stage={stage}", f"precision={precision}", "read_depth_aware=false")
            world = World(store, rank, ranks, *overrides)
            report[f"{precision}, stage {stage}"] = _skip_one(world, rank)
    return report


def _skip_one(world: World, rank: int) -> dict[str, Any]:
    with PrefetchedBatches(world.cells, CPU) as batches:
        steps = [[next(batches), next(batches)] for _ in range(4)]
    first = world.take(steps[0], 1)
    before = full_weights(world.engine)
    broken = steps[1]
    if rank == 1:
        counts = broken[1].counts.clone()
        counts[0] = math.nan
        broken = [broken[0], replace(broken[1], counts=counts)]
    second = world.take(broken, 2)
    record = skipped_record(second, broken, 2)
    after = full_weights(world.engine)
    third = world.take(steps[2], 3)
    changed = full_weights(world.engine)
    rows: list[Any] = [None, None]
    dist.all_gather_object(rows, broken[1].cell_ids.tolist())
    return {
        "applied": [outcome.applied for outcome in (first, second, third)],
        "losses": [outcome.loss for outcome in (first, second, third)],
        "norms": [outcome.gradient_norm for outcome in (first, second, third)],
        "kept": all(torch.equal(before[name], after[name]) for name in before),
        "moved": any(not torch.equal(after[name], changed[name]) for name in after),
        "finite": all(bool(weight.isfinite().all()) for weight in changed.values()),
        "record": record,
        "broken_rows": sorted(rows[1]),
    }


def _run(work: Any, store: str, folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    where = folder / f"{work.__name__}_{ranks}"
    dist.init_process_group("gloo", init_method=f"file://{where}.rendezvous", rank=rank, world_size=ranks)
    report = work(store, rank, ranks)
    if rank == 0:
        where.with_suffix(".json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


def main(store: str, folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for work, ranks in ((losses, 1), (losses, 2), (losses, 4), (skips, 2)):
        processes = [
            fork.Process(target=_run, args=(work, store, folder, rank, ranks)) for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit(f"{work.__name__} on {ranks} ranks failed")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
