"""DeepSpeed's ZeRO-2 on two CPU ranks against plain DistributedDataParallel, in CPU-seconds of all their threads.

Both take the product's own step on the same cells; only the engine differs. Each side of each round is a pair of fresh
processes, forked by a process of its own that has imported everything and computed nothing:
``python -m cellfoundry_bench.training.ranks PRESET CELLS STEPS ROUNDS``. Start-up and the first steps are not counted.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cellfoundry_bench.errors import BenchError
from cellfoundry_bench.measure import Comparison, cpu_clock
from cellfoundry_bench.results import Row

RANKS, WARM_STEPS = 2, 3
ENGINES = ("zero2", "ddp")


@dataclass(frozen=True)
class Sides:
    """CPU-seconds a step over both ranks, an entry a round, and the losses of the last round's steps, by engine."""

    seconds: dict[str, list[float]]
    losses: dict[str, list[float]]


def engine_row(preset: str, cells: int, steps: int, rounds: int) -> Row:
    """The comparison as a row; the bar is 1.25 times the CPU-seconds of DDP."""
    sides = compare_engines(preset, cells, steps, rounds)
    ours, peer = (sides.seconds[engine] for engine in ENGINES)
    timed = Comparison(ours, peer)
    return Row(
        f"CPU-seconds of a step of {preset}, DeepSpeed ZeRO-2",
        median(ours),
        "CPU-s",
        "DistributedDataParallel with AdamW",
        median(peer),
        timed.ratio,
        timed.ratio_range,
        bar=0.8,
        note=f"{RANKS} workers of one thread, {cells} real cells each, float32; {steps} steps a round",
    )


def compare_engines(preset: str, cells: int, steps: int, rounds: int) -> Sides:
    """Run both engines in turn, ``rounds`` times each; ``cells`` a rank and step.

    Raises:
        BenchError: a rank failed.
    """
    command = [sys.executable, "-m", __name__, preset, str(cells), str(steps), str(rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"comparing the engines failed: {done.stderr[-500:]}")
    return Sides(**json.loads(done.stdout.splitlines()[-1]))


def _all_rounds(preset: str, cells: int, steps: int, rounds: int) -> dict[str, Any]:
    import deepspeed  # noqa: F401  # for the children

    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    losses: dict[str, list[float]] = {}
    for _ in range(rounds):
        for engine in ENGINES:
            spent, losses[engine] = _run_world(engine, preset, cells, steps)
            seconds[engine].append(spent)
    return {"seconds": seconds, "losses": losses}


def _run_world(engine: str, preset: str, cells: int, steps: int) -> tuple[float, list[float]]:
    """CPU-seconds a step, summed over ranks, and the losses of the steps."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            fork.Process(target=_rank, args=(engine, rank, Path(folder), preset, cells, steps))
            for rank in range(RANKS)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            sys.exit(f"a rank of the engine {engine} failed")
        reports = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(RANKS)]
    return sum(report["cpu_s"] for report in reports) / steps, reports[0]["losses"]


def _rank(engine: str, rank: int, folder: Path, preset: str, cells: int, steps: int) -> None:
    """Leave one rank's CPU-seconds over ``steps`` steps after the warm ones, and the global losses."""
    import numpy as np
    import torch
    import torch.distributed as dist

    from cellfoundry_bench.real_cells import real_cells
    from cellfoundry_bench.training.plain_engine import RATE, PlainEngine
    from cellfoundry_model.architecture import CellModel
    from cellfoundry_training.batches import CellTensors
    from cellfoundry_training.config import load_config
    from cellfoundry_training.engine import start_engine
    from cellfoundry_training.objective import Masking
    from cellfoundry_training.step import Engine, GlobalStep
    from cellfoundry_training.step_clock import StepClock

    cpu = torch.device("cpu")
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    batches = ["batch_tokens=null", f"batch_cells={cells}", "gradient_accumulation=1"]
    config = load_config(preset, ["zero_stage=2", f"workers={RANKS}", "precision=fp32", *batches])
    drawn = real_cells(cells * RANKS * (WARM_STEPS + steps))
    architecture = config.architecture(n_genes=19_264)
    torch.manual_seed(0)
    model = CellModel(architecture)
    chosen: Engine = PlainEngine(model) if engine == "ddp" else start_engine(model, config, cpu)
    clock = StepClock(cpu)
    step = GlobalStep(chosen, architecture, Masking.of(config, architecture.n_genes), clock, RANKS)
    losses, started = [], 0.0
    for number in range(WARM_STEPS + steps):
        if number == WARM_STEPS:
            dist.barrier()
            started = cpu_clock()
        first = (number * RANKS + rank) * cells
        batch = drawn.select(np.arange(first, first + cells))
        clock.start("data")
        losses.append(step.run([CellTensors.of(batch, cpu)], number + 1, RATE).loss)
    spent = cpu_clock() - started
    (folder / f"{rank}.json").write_text(json.dumps({"cpu_s": spent, "losses": losses}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    print(json.dumps(_all_rounds(sys.argv[1], *map(int, sys.argv[2:]))))
