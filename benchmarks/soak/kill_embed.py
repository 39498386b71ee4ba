"""Kill `cellfoundry embed` with SIGKILL at random moments and compare what the same command makes then.

    python benchmarks/soak/kill_embed.py --kills 20 --out result.json

Each time the real command embeds 5,120 cells over an older output. It is killed when a random number of its parts are
committed, or while the output is written and published; what lies at the output then must be the older one or the new
one, whole. The same command runs again to its end: every file of the output must equal that of an undisturbed one,
and no part that was committed may be computed again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from kill_rounds import kill_rounds

from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_model.presets import PRESETS

CELLS, GENES_OF_A_CELL, PART_CELLS = 5_120, 60, 256
PARTS = CELLS // PART_CELLS
FINISHING = 4
"""Of PARTS + FINISHING moments to kill at, those when the output is written and published."""
SUFFIXES = ("zarr", "parquet", "h5ad")
DONE_BEFORE = re.compile(r"\(([\d,]+) cells were done before\)")

COMMAND = f"""
import sys
from cellfoundry_serving.parts import plan

plan.PART_CELLS = {PART_CELLS}
sys.argv[0] = "cellfoundry"
from cellfoundry.cli.main import run
run()
"""


class Soak:
    """Source, model and undisturbed outputs of the soak, in one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        genes = Vocabulary.named("scfoundation").genes
        torch.manual_seed(seed)
        save_model(CellModel(PRESETS["tiny"]), genes, folder / "model", {})
        self.source = folder / "cells.h5ad"
        write_source(self.source, genes, seed)
        self.undisturbed: dict[str, dict[str, str]] = {}
        self.older: dict[str, dict[str, str]] = {}
        for suffix in SUFFIXES:
            out, older = folder / f"undisturbed.{suffix}", folder / f"older.{suffix}"
            self.run(out)
            self.run(older, "--pool=max")
            self.undisturbed[suffix], self.older[suffix] = checksums(out), checksums(older)

    def start(self, out: Path, *options: str) -> subprocess.Popen[str]:
        """Start the command."""
        arguments = [
            "embed",
            str(self.source),
            "--model",
            str(self.folder / "model"),
            "--out",
            str(out),
            *options,
        ]
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, out: Path, *options: str) -> str:
        """Run the command to its end; what it prints."""
        process = self.start(out, *options)
        printed, _ = process.communicate()
        assert process.returncode == 0, f"the command ended with {process.returncode}"
        return printed

    def kill_once(self, suffix: str) -> str | None:
        """Kill one embedding and finish it; what was done when it died, None where it was through before.

        Raises AssertionError where an output is neither the older nor the new one, or a committed part is lost.
        """
        out, work = self.folder / f"out.{suffix}", self.folder / f".out.{suffix}.partial"
        copy(self.folder / f"older.{suffix}", out)
        process = self.start(out)
        moment = self.random.randrange(PARTS + FINISHING)
        while process.poll() is None and parts_done(work) < min(moment, PARTS):
            time.sleep(0.002)
        time.sleep(self.random.uniform(0, 0.1))
        process.kill()
        process.communicate()
        if process.returncode == 0:
            return None
        assert process.returncode == -signal.SIGKILL, f"the command ended with {process.returncode}"
        stage, committed = stage_of(work), parts_done(work)
        assert checksums(out) in (self.older[suffix], self.undisturbed[suffix]), (
            f"{suffix}: a mix at the output"
        )
        before = DONE_BEFORE.search(self.run(out))
        done_before = int(before[1].replace(",", "")) if before else 0
        assert done_before == committed * PART_CELLS, f"{suffix}: {committed} parts, {done_before} cells kept"
        assert checksums(out) == self.undisturbed[suffix], f"{suffix}: the finished output differs"
        assert not work.exists(), f"{suffix}: leftovers"
        return stage


def write_source(path: Path, genes: tuple[str, ...], seed: int) -> None:
    """Write synthetic cells as h5ad."""
    rng = np.random.default_rng(seed)
    share = GENES_OF_A_CELL / len(genes)
    counts = sp.random(
        CELLS, len(genes), share, format="csr", rng=rng, data_rvs=lambda n: rng.geometric(0.3, n)
    )
    obs = pd.DataFrame(
        {"tissue": rng.choice(["lung", "liver"], CELLS)}, index=[f"c{row}" for row in range(CELLS)]
    )
    anndata.AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=list(genes))).write_h5ad(path)


def copy(source: Path, target: Path) -> None:
    """Copy a file or folder over what is there."""
    if target.is_dir():
        shutil.rmtree(target)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def checksums(out: Path) -> dict[str, str]:
    """SHA-256 of every file of an output."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()] if out.is_dir() else [out]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def parts_done(work: Path) -> int:
    """Parts that are committed."""
    return len(list(work.glob("begun-*/parts/*.json")))


def stage_of(work: Path) -> str:
    """How far the killed embedding was."""
    if not list(work.glob("begun-*/request.json")):
        return "starting"
    if list(work.glob("begun-*/ready.json")):
        return "publishing"
    return "writing the output" if parts_done(work) == PARTS else "computing"


def main() -> None:
    """Run the soak and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), arguments.seed)
        done = kill_rounds(arguments.kills, SUFFIXES, soak.kill_once, "output")
    result = {
        "soak": "embed killed with SIGKILL",
        "kills": done.stages.total(),
        "outputs_identical": done.stages.total(),
        "killed_while": dict(done.stages),
        "formats": dict(done.modes),
        "through_before_the_kill": done.too_late,
        "cells": CELLS,
        "parts": PARTS,
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began, 1),
    }
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
