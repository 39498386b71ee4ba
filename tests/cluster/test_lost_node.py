"""A node of three lost in the middle of an ingest and of a pretraining: the results are those of undisturbed runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import psutil
import pytest
import scipy.sparse as sp

from cellfoundry_data.ingest import ingest
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_training import history
from cellfoundry_training.config import load_config
from cellfoundry_training.pretrain import pretrain

from .conftest import COMMAND_WITHIN_S

GENES, CELLS, PART_CELLS = 400, 600, 25
OPTIONS: dict[str, Any] = {"min_genes": 1, "cells_per_shard": 40}
INGEST = """
import json, sys
from cellfoundry_data.ingest import ingest, plan

source, store, part_cells, options = sys.argv[1:]
plan.PART_CELLS = int(part_cells)
ingest([source], store, **json.loads(options), progress=lambda *step: print(json.dumps(step), flush=True))
"""

STEPS, CHECKPOINT_EVERY = 200, 20
SETTINGS = [
    "model.encoder_width=16",
    "model.encoder_heads=2",
    "model.encoder_ffn_width=32",
    "model.decoder_width=16",
    "model.decoder_ffn_width=32",
    "workers=2",
    "device=cpu",
    "batch_cells=4",
    "max_seconds=null",
    f"max_steps={STEPS}",
    f"eval_every_steps={STEPS}",
    f"checkpoint_every_steps={CHECKPOINT_EVERY}",
    "loggers=[]",
]


@dataclass(frozen=True)
class Nodes:
    """A simulated cluster: its address, each node's raylet, and the process that holds it."""

    address: str
    raylets: list[int]
    process: subprocess.Popen[str]

    @property
    def environment(self) -> dict[str, str]:
        """Of a program that shall run on the cluster."""
        return {**os.environ, "RAY_ADDRESS": self.address, "OMP_NUM_THREADS": "1"}

    def running(self, name: str) -> list[int]:
        """Nodes, the first aside (drivers are connected to it), that run a worker process called ``name``."""
        return [
            node
            for node, raylet in enumerate(self.raylets)
            if node and any(name in child.name() for child in psutil.Process(raylet).children())
        ]

    def lose(self, node: int) -> None:
        """Take a node away, all its processes at once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(node, file=self.process.stdin, flush=True)
        assert json.loads(self.process.stdout.readline()) == {"lost": node}


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Three nodes with a CPU each."""
    folder = tempfile.mkdtemp(prefix="cf", dir="/tmp")  # Ray's socket names need a short path
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("three_nodes.py"), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield Nodes(**json.loads(process.stdout.readline()), process=process)
        finally:
            process.communicate(timeout=COMMAND_WITHIN_S)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def program(arguments: list[str], nodes: Nodes) -> Iterator[subprocess.Popen[str]]:
    """A Python program on the cluster; what it says is to be read."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=nodes.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def write_counts(folder: Path) -> Path:
    """``CELLS`` cells as h5ad, and their genes beside them as a vocabulary."""
    genes = [f"GENE{number}" for number in range(GENES)]
    Vocabulary(tuple(genes)).write_tsv(folder / "genes.tsv")
    counts = sp.csr_matrix(np.random.default_rng(5).poisson(0.4, (CELLS, GENES)).astype(np.float32))
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(CELLS)])
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def newest_step(run: Path) -> int:
    record, _ = history.newest(run / "metrics.jsonl")
    assert record is not None
    step: int = record["step"]
    return step


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_ingest_that_loses_a_node_writes_the_same_store(
    ray_local: None, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_counts(tmp_path)
    options = {**OPTIONS, "vocab": str(tmp_path / "genes.tsv")}
    arguments = [str(source), str(tmp_path / "store"), str(PART_CELLS), json.dumps(options)]
    read_at_the_loss = None
    with program(["-c", INGEST, *arguments], nodes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if read_at_the_loss is None and line.startswith('["read cells"'):
                busy = nodes.running("FlatMap")
                if busy:
                    read_at_the_loss = json.loads(line)[1]
                    nodes.lose(busy[0])
        assert process.wait(timeout=COMMAND_WITHIN_S) == 0
    assert read_at_the_loss is not None
    assert 0 < read_at_the_loss < CELLS / 2

    monkeypatch.setattr("cellfoundry_data.ingest.plan.PART_CELLS", PART_CELLS)
    ingest([str(source)], tmp_path / "undisturbed", **options)
    assert files(tmp_path / "store") == files(tmp_path / "undisturbed")


def test_a_pretraining_that_loses_a_node_ends_with_the_same_losses(
    ray_local: None, nodes: Nodes, tmp_path: Path
) -> None:
    ingest([str(write_counts(tmp_path))], tmp_path / "store", vocab=str(tmp_path / "genes.tsv"), **OPTIONS)
    run = tmp_path / "run"
    command = ["-m", "cellfoundry", "train", "pretrain", "--config", "tiny", f"--run={run}"]
    command += [f"--store={tmp_path / 'store'}", *(f"--set={setting}" for setting in SETTINGS)]
    step_at_the_loss = None
    with program(command, nodes) as process:
        assert process.stdout is not None
        while process.poll() is None and step_at_the_loss is None:
            if len(list(run.glob("checkpoints/*"))) > 1:  # a checkpoint, and that it counts
                step_at_the_loss = newest_step(run)
                nodes.lose(nodes.running("RayTrainWorker")[0])
            time.sleep(0.05)
        said = process.stdout.read()
        code = process.wait(timeout=COMMAND_WITHIN_S)
    assert step_at_the_loss is not None, said
    assert CHECKPOINT_EVERY <= step_at_the_loss < STEPS / 2
    if code:  # what one restart could not mend
        assert "--resume continues the run" in said
        with program([*command, "--resume"], nodes) as process:
            said = process.communicate()[0]
            assert process.returncode == 0, said

    undisturbed = pretrain(load_config("tiny", SETTINGS), tmp_path / "store", tmp_path / "undisturbed")
    losses, expected = (
        [(record["step"], record["loss"]) for record in history.steps(history.read(path))]
        for path in (run / "metrics.jsonl", undisturbed.history)
    )
    assert losses == expected
