"""A run's state moved between ZeRO stages, precisions and numbers of ranks: ``moved_state.py STORE FOLDER``.

Real DeepSpeed engines on gloo processes, without Ray. Some settings take steps and save, others go on from there.
Rank 0 of each world leaves a JSON file with checksums of what it saved or loaded, losses, and store rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import sys
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
from cellfoundry_training.batches import PrefetchedBatches
from cellfoundry_training.checkpoint_files import Manifest, Tensors
from cellfoundry_training.checkpoints import Checkpoints
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.engine import start_engine
from cellfoundry_training.engine_state import load_optimizer, load_weights, optimizer_step, own_part
from cellfoundry_training.objective import Masking
from cellfoundry_training.splits import train_cells
from cellfoundry_training.state import RunState
from cellfoundry_training.step import GlobalStep
from cellfoundry_training.step_clock import StepClock

CPU = torch.device("cpu")
SMALL = (
    "encoder_width=16",
    "encoder_heads=2",
    "encoder_ffn_width=32",
    "decoder_width=16",
    "decoder_ffn_width=32",
)
STEP_BATCHES, STEPS, RATE = 4, 2, 1e-2
# Three ranks divide neither the micro-batches of a step nor the sizes of the parameters.
TRAINED = {1: ("2 fp32",), 2: ("0 bf16",), 3: ("3 fp32",)}
MOVED_TO = {1: ("0 fp32",), 2: ("1 fp32", "3 bf16"), 3: ("3 fp32", "0 fp32")}


class World:
    """One rank with its model, engine and cells, new or from a checkpoint."""

    def __init__(self, store: str, checkpoints: Checkpoints, setting: str, rank: int, ranks: int) -> None:
        stage, precision = setting.split()
        self.rank, self.ranks = rank, ranks
        config: PretrainConfig = load_config(
            "tiny",
            [
                *(f"model.{each}" for each in SMALL),
                *("batch_cells=2", f"gradient_accumulation={STEP_BATCHES}", "weight_decay=0.1"),
                *(f"zero_stage={stage}", f"precision={precision}"),
            ],
        )
        self.checkpoints, self.config = checkpoints, config
        opened = open_store(store)
        architecture = config.architecture(len(opened.vocabulary.genes))
        found = checkpoints.newest()
        torch.manual_seed(0)
        model = CellModel(architecture)
        if found is not None:
            with Tensors(found) as tensors:
                load_weights(model, tensors.get)
        on_ranks = config.on_ranks(ranks)
        self.engine = start_engine(model, on_ranks, CPU)
        self.state = RunState()
        self.cells = train_cells(opened, config, rank, ranks)
        if found is not None:
            with Tensors(found) as tensors:
                load_optimizer(self.engine, tensors.get, found.manifest.optimizer_step)
            self.state = found.manifest.state.model_copy()
        clock = StepClock(CPU)
        clock.start("data")
        self.rounds, masking = on_ranks.gradient_accumulation, Masking.of(config, architecture.n_genes)
        self.step = GlobalStep(self.engine, architecture, masking, clock, ranks)

    def take_steps(self) -> dict[str, list[Any]]:
        """Losses, and the store rows of all ranks, of a few steps from where the state stands."""
        if self.state.loader:
            self.cells.load_state_dict(self.state.loader)
        own = len(range(self.rank, STEP_BATCHES, self.ranks))
        losses, rows = [], []
        with PrefetchedBatches(self.cells, CPU, ahead=own) as batches:
            for _ in range(STEPS):
                micro = list(itertools.islice(batches, own))
                self.state.step += 1
                losses.append(self.step.run(micro, self.state.step, RATE, self.rounds).loss)
                of_ranks: list[Any] = [None] * self.ranks
                dist.all_gather_object(of_ranks, [row for cells in micro for row in cells.cell_ids.tolist()])
                rows.append(sorted(itertools.chain.from_iterable(of_ranks)))
            self.state.loader = batches.position
        return {"losses": losses, "rows": rows}

    def save(self) -> None:
        """A checkpoint of the present state."""
        manifest = Manifest(
            state=self.state,
            optimizer_step=optimizer_step(self.engine),
            ranks=self.ranks,
            zero_stage=self.config.zero_stage,
            config_hash="",
            files=(),
        )
        self.checkpoints.save(own_part(self.engine, self.rank, self.ranks), manifest)
        self.checkpoints.finish()

    def digests(self) -> dict[str, str]:
        """A checksum of every tensor of all ranks."""
        part = own_part(self.engine, self.rank, self.ranks)
        own = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in part.items()}
        of_ranks: list[Any] = [None] * self.ranks
        dist.all_gather_object(of_ranks, own)
        return {name: digest for each in of_ranks for name, digest in each.items()}


def train(store: str, folder: Path, rank: int, ranks: int) -> Any:
    """Train anew in every setting of this world and save: checksums at the save, and what comes after it."""
    report = {}
    for setting in TRAINED[ranks]:
        world = World(
            store, _checkpoints(folder / f"{setting} on {ranks}", rank, ranks), setting, rank, ranks
        )
        before = world.take_steps()
        world.save()
        report[setting] = {"before": before, "digests": world.digests(), "after": world.take_steps()}
    return report


def move(store: str, folder: Path, rank: int, ranks: int) -> Any:
    """Go on in every setting of this world from every checkpoint: checksums, and what comes after."""
    report = {}
    for source in sorted(folder.glob("* on *")):
        for setting in MOVED_TO[ranks]:
            world = World(store, _checkpoints(source, rank, ranks), setting, rank, ranks)
            report[f"{source.name} -> {setting}"] = {"digests": world.digests(), "after": world.take_steps()}
    return report


def _checkpoints(folder: Path, rank: int, ranks: int) -> Checkpoints:
    return Checkpoints(folder, rank, ranks, keep=1, keep_best=False, warn=_refuse)


def _refuse(sentence: str) -> None:
    raise AssertionError(sentence)


def _run(work: Any, store: str, folder: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    where = folder / f"{work.__name__}_{ranks}"
    dist.init_process_group("gloo", init_method=f"file://{where}.rendezvous", rank=rank, world_size=ranks)
    report = work(store, folder, rank, ranks)
    if rank == 0:
        where.with_suffix(".json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


def main(store: str, folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for work, ranks in itertools.product((train, move), TRAINED):
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
