"""Steps of real DeepSpeed engines on worlds of 1, 2 and 4 gloo processes, without Ray: ``worlds.py STORE FOLDER``.

Processes are forked after the imports, which cost more than the steps. Rank 0 of each world leaves a JSON file.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"

import deepspeed  # noqa: F401  # for the children
import torch
import torch._dynamo  # which optimizers import, 1.2 s in each child
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


def losses(store: str, rank: int, ranks: int, *overrides: str) -> Any:
    """Losses of a few steps, the same global batches in every world, and the phases of the last one."""
    world = World(store, rank, ranks, "zero_stage=1", *overrides)
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


def sampled_losses(store: str, rank: int, ranks: int) -> Any:
    """The same with a decoder that sees a sample of the zeros."""
    return losses(store, rank, ranks, "decoder_context=sampled", "context_rate=0.3")


def skips(store: str, rank: int, ranks: int) -> Any:
    """Of every ZeRO stage and precision: a step with a broken loss on rank 1, and one with a broken gradient."""
    report = {}
    for precision in ("fp32", "bf16"):
        for stage in range(4):
            world = World(store, rank, ranks, f"zero_stage={stage}", f"precision={precision}")
            report[f"{precision}, stage {stage}"] = _skip_two(world, rank)
    return report


def _skip_two(world: World, rank: int) -> dict[str, Any]:
    """Steps 2 and 3 of 4 are broken, in the second micro-batch of rank 1."""
    with PrefetchedBatches(world.cells, CPU) as batches:
        steps = [[next(batches), next(batches)] for _ in range(4)]
    outcomes = [world.take(steps[0], 1)]
    weights = [_snapshot(world)]
    records = []
    for number, broken in ((2, _nan_prediction), (3, _infinite_gradient)):
        calls = itertools.count()
        hook = world.engine.module.to_expression.register_forward_hook(
            lambda *inputs, broken=broken, calls=calls: (
                broken(inputs[-1]) if rank == next(calls) == 1 else None
            )
        )
        outcomes.append(world.take(steps[number - 1], number))
        hook.remove()
        records.append(skipped_record(outcomes[-1], steps[number - 1], number))
        weights.append(_snapshot(world))
    outcomes.append(world.take(steps[3], 4))
    weights.append(_snapshot(world))
    rows: list[Any] = [None, None]
    dist.all_gather_object(rows, [[cells.cell_ids.tolist() for cells in step] for step in steps])
    return {
        "applied": [outcome.applied for outcome in outcomes],
        "losses": [outcome.loss for outcome in outcomes],
        "norms": [outcome.gradient_norm for outcome in outcomes],
        "changed": [_differ(*pair) for pair in itertools.pairwise(weights)],
        "finite": all(bool(weight.isfinite().all()) for weight in weights[-1].values()),
        "records": records,
        "rows": rows,
    }


def _snapshot(world: World) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in full_weights(world.engine).items()}


def _nan_prediction(output: torch.Tensor) -> torch.Tensor:
    return output * math.nan


def _infinite_gradient(output: torch.Tensor) -> None:
    output.register_hook(lambda gradient: gradient * math.inf)


def _differ(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before)


def _run(work: Any, store: str, folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    where = folder / f"{work.__name__}_{ranks}"
    dist.init_process_group("gloo", init_method=f"file://{where}.rendezvous", rank=rank, world_size=ranks)
    report = work(store, rank, ranks)
    if rank == 0:
        where.with_suffix(".json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


def main(store: str, folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    sampled = ((sampled_losses, 1), (sampled_losses, 2))
    for work, ranks in ((losses, 1), (losses, 2), (losses, 4), *sampled, (skips, 2)):
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
