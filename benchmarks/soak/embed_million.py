"""`cellfoundry embed` over a store of a million synthetic cells: memory over time, stalls, one kill and the resume.

    python benchmarks/soak/embed_million.py --out result.json

The real command embeds the store with a random model of preset tiny into .zarr, or into what --format says. Half-way it
is killed with SIGKILL and started again. Meanwhile the memory of its process tree is sampled, and when parts are
committed. At the end a sample of rows must equal what the engine gives for these cells alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr

from cellfoundry_bench.atlas.cells import design, draw_cells
from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store import open_store
from cellfoundry_data.store.cell_keys import cell_keys
from cellfoundry_data.store.format import OBS_CELL_NAME, OBS_SOURCE, OBS_SOURCE_ROW
from cellfoundry_data.store.replace import replacing_store
from cellfoundry_data.store.writer import finish_store, start_store, write_shard
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_model.presets import PRESETS
from cellfoundry_serving.engines import open_engine

MOLECULES = (70, 120)
"""Of a cell; about 60 to 100 genes."""
SHARD_CELLS = 50_000
SAMPLE_S = 1.0
COMPARED_CELLS = 500
SAME = 1e-5
MODEL_MEMORY = """
import sys, psutil
from cellfoundry_serving import embed
from cellfoundry_serving.engines import open_engine
engine = open_engine(sys.argv[1])
print(psutil.Process().memory_full_info().pss)
"""


@dataclass
class Watched:
    """What one run of the command did.

    Attributes:
        megabytes: memory of the process tree, every second.
        first_part_s: from the start to the first part.
        stall_s: the longest time between two parts.
        parts: committed by this run.
        seconds: the run took.
    """

    megabytes: list[float] = field(default_factory=list)
    first_part_s: float = 0.0
    stall_s: float = 0.0
    parts: int = 0
    seconds: float = 0.0


def write_store(store: Path, cells: int, seed: int) -> None:
    """A store of synthetic cells, written without an ingest."""
    vocabulary = Vocabulary.named("scfoundation")
    made = design(cells, len(vocabulary), seed)
    molecules = np.random.default_rng(seed).integers(*MOLECULES, cells)
    shards = []
    with replacing_store(store) as folder:
        start_store(folder, vocabulary)
        for number, first in enumerate(range(0, cells, SHARD_CELLS)):
            rows = np.arange(first, min(first + SHARD_CELLS, cells))
            lengths, gene_ids, counts = draw_cells(
                first, rows[-1] + 1, seed, made.types, molecules, made.thresholds, made.aliases
            )
            batch = CellBatch(np.concatenate([[0], np.cumsum(lengths)]), gene_ids, counts, rows)
            obs = pa.table(
                {
                    OBS_SOURCE: pa.array(["synthetic"] * len(rows)).dictionary_encode(),
                    OBS_SOURCE_ROW: rows,
                    OBS_CELL_NAME: [f"cell{row}" for row in rows],
                    "cell_type": pa.array([f"type {kind}" for kind in made.types[rows]]).dictionary_encode(),
                }
            )
            shards.append(write_shard(folder, f"{number:06d}", batch, cell_keys(0, rows), obs))
        finish_store(folder, vocabulary, shards, seed=seed, qc={}, sources=[{"name": "synthetic"}])


def watch(command: list[str], work: Path, kill_at: int | None) -> Watched:
    """Run the command and watch it; killed where ``kill_at`` parts are committed."""
    seen = Watched()
    began = told = time.monotonic()
    sampled, before = 0.0, committed(work)
    parts = before
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    try:
        while process.poll() is None:
            now = time.monotonic()
            if now - sampled >= SAMPLE_S:
                sampled = now
                seen.megabytes.append(tree_megabytes(process.pid))
            found = committed(work)
            if found > parts:
                if parts == before:
                    seen.first_part_s = now - began
                else:
                    seen.stall_s = max(seen.stall_s, now - told)
                parts, told = found, now
            if kill_at is not None and parts >= kill_at:
                break
            time.sleep(0.05)
    finally:
        kill_tree(process)
    seen.parts, seen.seconds = parts - before, time.monotonic() - began
    if kill_at is None:
        assert process.returncode == 0, f"the command ended with {process.returncode}"
    return seen


def committed(work: Path) -> int:
    """Parts on the disk."""
    return len(list(work.glob("parts/*.json")))


def tree_megabytes(pid: int) -> float:
    """Memory of a process and all it started, MB; what they share counts once."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for each in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += each.memory_full_info().pss
    return total / 1e6


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and everything it started, itself first."""
    started = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(started, timeout=30)


def check_rows(store: Path, model: Path, out: Path, cells: int, seed: int) -> None:
    """AssertionError unless every cell is there and a sample equals what the engine gives for it alone."""
    rows = np.sort(np.random.default_rng(seed).choice(cells, min(COMPARED_CELLS, cells), replace=False))
    if out.suffix == ".zarr":
        array = zarr.open_group(out, mode="r")["embedding"]
        assert isinstance(array, zarr.Array)
        found = np.stack([np.asarray(array[row]) for row in rows])
        assert array.shape[0] == cells
    elif out.suffix == ".npy":
        found = np.load(out, mmap_mode="r")[rows]
    else:
        found = np.stack(
            pq.read_table(out, columns=["embedding"])["embedding"].take(pa.array(rows)).to_pylist()
        )
    expected = open_engine(model).encode(open_store(store).read_cells(rows))
    worst = float(np.abs(found - expected).max())
    assert worst <= SAME, f"rows differ by {worst}"


def main() -> None:
    """Run the soak and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["zarr", "parquet", "npy"], default="zarr")
    parser.add_argument("--workers", type=int, help="Ray workers; one process without")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="cf", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        store, model, out = folder / "store", folder / "model", folder / f"out.{arguments.format}"
        write_store(store, arguments.cells, arguments.seed)
        torch.manual_seed(arguments.seed)
        save_model(CellModel(PRESETS["tiny"]), Vocabulary.named("scfoundation").genes, model, {})
        alone = subprocess.run(
            [sys.executable, "-c", MODEL_MEMORY, str(model)], stdout=subprocess.PIPE, check=True
        )
        model_megabytes = int(alone.stdout) / 1e6
        command = [
            sys.executable,
            "-m",
            "cellfoundry",
            "embed",
            str(store),
            "--model",
            str(model),
            "--out",
            str(out),
        ]
        if arguments.workers:
            command += ["--workers", str(arguments.workers)]
            os.environ.setdefault("RAY_TMPDIR", str(folder / "ray"))
        work = folder / f".{out.name}.partial"
        half = max(1, arguments.cells // 1024 // 2)
        first = watch(command, work, half)
        second = watch(command, work, None)
        check_rows(store, model, out, arguments.cells, arguments.seed)
        result = _result(arguments, model_megabytes, first, second)
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


def _result(
    arguments: argparse.Namespace, model_megabytes: float, first: Watched, second: Watched
) -> dict[str, Any]:
    peak = max(first.megabytes + second.megabytes)
    tenth = max(1, len(second.megabytes) // 10)
    middle = second.megabytes[tenth:-tenth] or second.megabytes
    quarter = max(1, len(middle) // 4)
    return {
        "soak": "synthetic cells embedded, killed half-way, resumed",
        "cells": arguments.cells,
        "format": arguments.format,
        "workers": arguments.workers or "one process",
        "rows_compared": min(COMPARED_CELLS, arguments.cells),
        "seconds": round(first.seconds + second.seconds, 1),
        "cells_per_second": round(arguments.cells / (first.seconds + second.seconds), 1),
        "first_part_s": [round(first.first_part_s, 1), round(second.first_part_s, 1)],
        "longest_stall_s": round(max(first.stall_s, second.stall_s), 1),
        "parts_before_the_kill": first.parts,
        "parts_after_the_kill": second.parts,
        "model_alone_MB": round(model_megabytes),
        "peak_MB": round(peak),
        "peak_beyond_the_model_MB": round(peak - model_megabytes),
        "mean_MB_early_and_late_in_the_second_run": [
            round(float(np.mean(middle[:quarter]))),
            round(float(np.mean(middle[-quarter:]))),
        ],
        "seed": arguments.seed,
    }


if __name__ == "__main__":
    main()
