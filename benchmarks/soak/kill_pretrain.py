"""Kill ranks of a pretraining run with SIGKILL at random moments, lose nodes, and compare with a run in peace.

    python benchmarks/soak/kill_pretrain.py --kills 20 --out result.json

Two ranks train on a simulated cluster of three nodes. Half of the kills wait for a save to begin, the others for a
random step; then a whole node that holds a rank is lost. The run must come to the same losses, bit for bit, and the
same cells in every step. An elastic run then loses a node that stays away, goes on with one rank, and grows again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store.cell_keys import cell_keys
from cellfoundry_data.store.replace import replacing_store
from cellfoundry_data.store.writer import finish_store, start_store, write_shard
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_training import history
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.files import RunFiles
from cellfoundry_training.pretrain import pretrain

CELLS, GENES, RANKS, CHECKPOINT_EVERY = 3_000, 200, 2, 5
SETTINGS = (
    # 8 million parameters, so that a save of 100 MB takes long enough to be hit; steps take about 0.1 s.
    *(
        "model.encoder_width=384",
        "model.encoder_heads=6",
        "model.encoder_ffn_width=1536",
        "model.encoder_depth=4",
    ),
    *(
        "model.decoder_width=64",
        "model.decoder_ffn_width=128",
        f"workers={RANKS}",
        "device=cpu",
        "zero_stage=1",
    ),
    *(
        "batch_cells=2",
        "gradient_accumulation=1",
        "max_seconds=null",
        "validation_share=0.05",
        "eval_cells=16",
    ),
    *(
        "learning_rate=1e-3",
        "eval_every_steps=100",
        f"checkpoint_every_steps={CHECKPOINT_EVERY}",
        "loggers=[]",
    ),
    *("log_cells=true", "max_restarts=1000"),
)
STEPS_A_KILL = 12
"""Steps of the run for every kill: those between the last checkpoint and the kill run twice."""
CLOCK = ("seconds", "cells_per_s", "tokens_per_s", "mfu")
ELASTIC_STEPS = 400


def config(steps: int, *overrides: str) -> PretrainConfig:
    """Of every run of the soak."""
    return load_config("tiny", [*SETTINGS, f"max_steps={steps}", *overrides])


def write_store(path: Path, seed: int) -> Path:
    """A store of random cells; its path."""
    rng = np.random.default_rng(seed)
    dense = rng.poisson(rng.gamma(0.3, 2.0, (CELLS, GENES)))
    cell, gene = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum((dense > 0).sum(1))]).astype(np.int64)
    rows = np.arange(CELLS, dtype=np.int64)
    cells = CellBatch(indptr, gene.astype(np.int32), dense[cell, gene].astype(np.float32), rows)
    vocabulary = Vocabulary(tuple(f"GENE{index}" for index in range(GENES)))
    with replacing_store(path) as folder:
        start_store(folder, vocabulary)
        shard = write_shard(folder, "00000", cells, cell_keys(0, rows), pa.table({"source_row": rows}))
        finish_store(folder, vocabulary, [shard], seed=seed, qc={}, sources=[])
    return path


def computed(files: RunFiles) -> list[dict[str, Any]]:
    """The lines of steps and evaluations without what the clock decides."""
    return [
        {key: value for key, value in line.items() if key not in CLOCK and not key.endswith("_s")}
        for line in history.read(files.metrics)
        if "warning" not in line
    ]


def ranks_alive() -> list[psutil.Process]:
    """Ray Train's workers below this process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


class Disturbed:
    """A run in a thread, and what is done to it."""

    def __init__(self, store: Path, files: RunFiles, settings: PretrainConfig) -> None:
        self.files, self.steps = files, int(settings.max_steps or 0)
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(store, settings), daemon=True)
        self._thread.start()

    def _run(self, store: Path, settings: PretrainConfig) -> None:
        try:
            pretrain(settings, store, self.files.folder)
        except BaseException as error:
            self.failure = error

    def step(self) -> int:
        """Steps done, which a restart takes back to those of the last checkpoint."""
        newest = history.newest(self.files.metrics).step
        return newest["step"] if newest else 0

    def warnings(self) -> int:
        """Warnings so far."""
        return sum("warning" in line for line in history.read(self.files.metrics))

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(self.files.checkpoints.glob(".step-*"))

    def wait(self, happened: Callable[[], bool]) -> bool:
        """Look every millisecond; False if the run ended before, RuntimeError if it failed."""
        while self._thread.is_alive():
            if happened():
                return True
            time.sleep(0.001)
        self.end()
        return False

    def end(self) -> None:
        """Wait for the end; RuntimeError if the run failed."""
        self._thread.join()
        if self.failure is not None:
            log = self.files.failure.read_text() if self.files.failure.exists() else ""
            raise RuntimeError(f"the run failed: {self.failure}\n{log}") from self.failure

    def wait_for_restart(self, warnings: int) -> None:
        """Until the ranks are back, which leaves a warning, and take steps."""
        assert self.wait(lambda: self.warnings() > warnings)
        back_at = self.step()
        assert self.wait(lambda: self.step() > back_at)


def kill_ranks(run: Disturbed, kills: int, draw: random.Random) -> dict[str, int]:
    """Kill a random rank ``kills`` times; how many died while a checkpoint was being written, and how many else."""
    while_what = {"saving": 0, "stepping": 0}
    for number in range(kills):
        warnings = run.warnings()
        if number % 2 == 0:
            assert run.wait(run.saving)
        else:
            goal = run.step() + draw.randint(1, 2 * CHECKPOINT_EVERY)
            assert run.wait(lambda goal=goal: run.step() >= goal)
            time.sleep(draw.uniform(0, 0.2))
        victim = draw.choice(ranks_alive())
        victim.kill()
        victim.wait()
        what = "saving" if run.saving() else "stepping"
        while_what[what] += 1
        at = run.step()
        run.wait_for_restart(warnings)
        print(f"{number + 1}/{kills} killed while {what} after step {at}", file=sys.stderr, flush=True)
    assert while_what["saving"] >= kills // 4, f"too few died during a save: {while_what}"
    return while_what


def lose_a_node(run: Disturbed, cluster: Cluster) -> None:
    """Take away a node that holds a rank."""
    raylets = {
        process.process.pid: node for node in cluster.worker_nodes for process in node.all_processes["raylet"]
    }
    parents = {parent.pid for rank in ranks_alive() for parent in rank.parents()}
    cluster.remove_node(next(raylets[pid] for pid in raylets if pid in parents), allow_graceful=False)


def hurt(store: Path, folder: Path, cluster: Cluster, kills: int, seed: int) -> dict[str, Any]:
    """A run in peace and one with kills and a lost node; AssertionError where they differ."""
    steps = (kills + 2) * STEPS_A_KILL
    peaceful, files = RunFiles(folder / "peaceful"), RunFiles(folder / "hurt")
    pretrain(config(steps), store, peaceful.folder)
    run = Disturbed(store, files, config(steps))
    assert run.wait(lambda: run.step() >= 1)
    while_what = kill_ranks(run, kills, random.Random(seed))
    warnings = run.warnings()
    lose_a_node(run, cluster)
    run.wait_for_restart(warnings)
    print("lost a node", file=sys.stderr, flush=True)
    cluster.add_node(num_cpus=1)
    run.end()

    expected, found = computed(peaceful), computed(files)
    assert [line.get("cell_rows") for line in found] == [line.get("cell_rows") for line in expected]
    assert found == expected
    return {
        "kills": kills,
        "killed_while": while_what,
        "nodes_lost": 1,
        "steps": steps,
        "steps_with_other_cells": 0,
        "final_heldout_loss": found[-1]["heldout_loss"],
        "final_heldout_loss_in_peace": expected[-1]["heldout_loss"],
    }


def shrink_and_grow(store: Path, folder: Path, cluster: Cluster) -> dict[str, Any]:
    """An elastic run that loses a node for a while; AssertionError where its cells differ from those in peace."""
    elastic, files = config(ELASTIC_STEPS, "min_workers=1"), RunFiles(folder / "elastic")
    peaceful = RunFiles(folder / "peaceful elastic")
    pretrain(config(ELASTIC_STEPS), store, peaceful.folder)
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    run = Disturbed(store, files, elastic)
    assert run.wait(lambda: run.step() >= 1)
    sizes = [len(ranks_alive())]
    warnings = run.warnings()
    lose_a_node(run, cluster)
    run.wait_for_restart(warnings)
    sizes.append(len(ranks_alive()))
    cluster.add_node(num_cpus=1)
    grown = run.wait(lambda: len(ranks_alive()) == RANKS)
    sizes += [RANKS] if grown else []
    run.end()
    print(f"elastic run on {sizes} ranks", file=sys.stderr, flush=True)

    expected, found = computed(peaceful), computed(files)
    assert [line.get("cell_rows") for line in found] == [line.get("cell_rows") for line in expected]
    ours, theirs = found[-1]["heldout_loss"], expected[-1]["heldout_loss"]
    assert abs(ours / theirs - 1) < 1e-3
    return {"ranks": sizes, "steps": ELASTIC_STEPS, "final_heldout_loss": ours, "in_peace": theirs}


def main() -> None:
    """Run the soak and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--skip-elastic", action="store_true", help="Leave out the elastic run, some minutes."
    )
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()

    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(RANKS + 1):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        try:
            store = write_store(folder / "store", arguments.seed)
            result: dict[str, Any] = {"soak": "pretraining on 2 ranks whose processes and nodes are killed"}
            result |= hurt(store, folder, cluster, arguments.kills, arguments.seed)
            if not arguments.skip_elastic:
                result["elastic"] = shrink_and_grow(store, folder, cluster)
        finally:
            ray.shutdown()
            cluster.shutdown()
    result |= {"cells": CELLS, "seed": arguments.seed, "seconds": round(time.monotonic() - began, 1)}
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
