"""Kill ingests with SIGKILL at random moments, driver and workers alike, and compare what the same call makes then.

    python benchmarks/soak/kill_ingest.py --kills 50 --out result.json

Each time a process of its own ingests 20,000 cells into a new store, over an old store, or as an append to one. It is
killed when a random number of its parts and shards are finished, or while the store is published; a reader looks at
the store, and the ingest runs again to its end: every file of the store must equal that of an undisturbed one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import psutil
import scipy.sparse as sp
from kill_rounds import kill_rounds

from cellfoundry_data.ingest import ingest, plan
from cellfoundry_data.ray_cluster import ray_cluster
from cellfoundry_data.store import open_store, verify
from cellfoundry_data.vocabulary import Vocabulary

CELLS, GENES = 20_000, 2_000
PART_CELLS, SHARD_CELLS = 1_000, 500
PIECES = CELLS // PART_CELLS + CELLS // SHARD_CELLS
PUBLISHING = 8
"""Of PIECES + PUBLISHING moments to kill at, those just when the store is published."""
MODES = ("new", "replace", "append")

CHILD = f"""
import json, sys
from cellfoundry_data.ingest import ingest, plan

plan.PART_CELLS = {PART_CELLS}
call = json.loads(sys.argv[1])
ingest(call.pop("sources"), call.pop("store"), **call)
"""


class Soak:
    """Stores and sources of the soak, in one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        vocabulary = folder / "genes.tsv"
        Vocabulary(tuple(f"GENE{gene}" for gene in range(GENES))).write_tsv(vocabulary)
        self.options: dict[str, Any] = {
            "vocab": str(vocabulary),
            "min_genes": 1,
            "cells_per_shard": SHARD_CELLS,
        }
        self.source = write_source(folder / "cells.h5ad", CELLS, seed)
        old = write_source(folder / "old.h5ad", CELLS // 10, seed + 1)
        self.old = folder / "old"
        ingest([old], self.old, **self.options)
        self.files: dict[str, dict[str, str]] = {}
        self.manifest: dict[str, str] = {}
        for mode in MODES:
            store = self._target(mode)
            ingest(**self._call(mode, store))
            self.files[mode], self.manifest[mode] = checksums(store), open_store(store).manifest["sha256"]
        self.manifest["old"] = open_store(self.old).manifest["sha256"]

    def _target(self, mode: str) -> Path:
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        if mode != "new":
            shutil.copytree(self.old, store)
        return store

    def _call(self, mode: str, store: Path) -> dict[str, Any]:
        return {"sources": [self.source], "store": str(store), "append": mode == "append", **self.options}

    def kill_once(self, mode: str) -> str | None:
        """Kill one ingest and finish it; what was done when it died, None where it was through before.

        Raises AssertionError where a reader sees a mix or the finished store differs.
        """
        store, work = self._target(mode), self.folder / ".store.partial"
        call = self._call(mode, store)
        with tempfile.TemporaryDirectory(prefix="cf", ignore_cleanup_errors=True) as ray_folder:
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, json.dumps(call)],
                env={**os.environ, "RAY_TMPDIR": ray_folder},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            moment = self.random.randrange(PIECES + PUBLISHING)
            while child.poll() is None and pieces_done(work) < moment:
                time.sleep(0.002)
            time.sleep(self.random.uniform(0, 0.1) if moment < PIECES else 0)
            kill_tree(child)
        if child.returncode == 0:
            return None
        assert child.returncode == -signal.SIGKILL, f"the ingest ended with {child.returncode}"
        stage = stage_of(work)
        if store.exists():
            assert not verify(store).bad, f"{mode}: the killed ingest left a damaged store"
            seen = open_store(store).manifest["sha256"]
            assert seen in (self.manifest["old"], self.manifest[mode]), f"{mode}: a reader sees a mix"
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that something of the killed ingest was thrown away
            ingest(**call)
        assert checksums(store) == self.files[mode], f"{mode}: the finished store differs"
        assert not work.exists(), f"{mode}: leftovers"
        return stage


def write_source(path: Path, n_cells: int, seed: int) -> str:
    """Write synthetic cells as h5ad; its path."""
    rng = np.random.default_rng(seed)
    counts = sp.random(n_cells, GENES, 0.1, format="csr", rng=rng, data_rvs=lambda n: rng.geometric(0.3, n))
    obs = pd.DataFrame(
        {"tissue": rng.choice(["lung", "liver"], n_cells)}, index=[f"{seed}_{row}" for row in range(n_cells)]
    )
    var = pd.DataFrame(index=[f"GENE{gene}" for gene in range(GENES)])
    anndata.AnnData(counts.astype(np.float32), obs=obs, var=var).write_h5ad(path)
    return str(path)


def checksums(store: Path) -> dict[str, str]:
    """SHA-256 of every file of a store."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and everything it started, itself first."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    process.kill()
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(started, timeout=30)


def pieces_done(work: Path) -> int:
    """Parts and shards that are finished; ``PIECES`` and more from the moment when the store is published."""
    if (work / "ready.json").exists():
        return PIECES + PUBLISHING
    return len(list(work.glob("parts/*"))) + len(list(work.glob("shards-*/*.json")))


def stage_of(work: Path) -> str:
    """How far the killed ingest was."""
    if not work.exists():
        return "published"
    if (work / "ready.json").exists():
        return "publishing"
    shards = len(list(work.glob("shards-*/*.json")))
    if shards:
        return "writing shards"
    return "reading" if any(work.glob("parts/*")) else "starting to read"


def main() -> None:
    """Run the soak and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()

    plan.PART_CELLS = PART_CELLS
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        soak = Soak(Path(folder), arguments.seed)
        done = kill_rounds(arguments.kills, MODES, soak.kill_once, "store")
    result = {
        "soak": "ingest killed with SIGKILL, driver and workers",
        "kills": done.stages.total(),
        "stores_identical": done.stages.total(),
        "killed_while": dict(done.stages),
        "modes": dict(done.modes),
        "through_before_the_kill": done.too_late,
        "cells": CELLS,
        "parts": CELLS // PART_CELLS,
        "shards": CELLS // SHARD_CELLS,
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began, 1),
    }
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
