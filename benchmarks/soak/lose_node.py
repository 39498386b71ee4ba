"""Take a node away, as a power cut does, in the middle of an ingest on a simulated cluster of three; the store must be
byte for byte that of an undisturbed ingest on such a cluster. `kill_pretrain.py` does the like to training.

    python benchmarks/soak/lose_node.py --losses 10 --out result.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import psutil
import scipy.sparse as sp

from cellfoundry_data.vocabulary import Vocabulary

GENES, CELLS, PART_CELLS, SHARD_CELLS = 400, 600, 25, 40
INGEST = f"""
import json, sys
from cellfoundry_data.ingest import ingest, plan

plan.PART_CELLS = {PART_CELLS}
options = json.loads(sys.argv[1])
ingest([options.pop("source")], progress=lambda *step: print(json.dumps(step), flush=True), **options)
"""


@dataclass(frozen=True)
class Nodes:
    """A simulated cluster: its address, each node's raylet, and the process that holds it."""

    address: str
    raylets: list[int]
    process: subprocess.Popen[str]

    def busy(self, worker: str) -> list[int]:
        """Nodes that run a worker process of this name; not the first, to which programs are connected."""
        return [
            node
            for node, raylet in enumerate(self.raylets)
            if node and any(worker in name for name in process_names(raylet))
        ]

    def lose(self, node: int) -> None:
        """Take a node away, all its processes at once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(node, file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        assert answer == {"lost": node}, answer

    @contextmanager
    def program(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A Python program on the cluster while it runs; what it says is to be read."""
        with subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "RAY_ADDRESS": self.address, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str) -> None:
        """Run a program to its end."""
        with self.program(*arguments) as process:
            said = process.communicate()[0]
            assert process.returncode == 0, said


@contextmanager
def three_nodes() -> Iterator[Nodes]:
    """Three nodes with a CPU each, without authentication, on this machine."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    # Below /tmp, because the paths of Ray's sockets must be short.
    with (
        tempfile.TemporaryDirectory(prefix="cf", dir="/tmp", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("three_nodes.py")), folder],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        yield Nodes(**json.loads(process.stdout.readline()), process=process)
        process.communicate()


class Ingest:
    """A store of ``CELLS`` cells, read in parts by Ray Data."""

    worker = "FlatMap"

    def __init__(self, folder: Path, source: Path) -> None:
        self.options = {
            "source": str(source),
            "vocab": str(source.with_name("genes.tsv")),
            "min_genes": 1,
            "cells_per_shard": SHARD_CELLS,
        }
        self.folder = folder

    def undisturbed(self, nodes: Nodes) -> dict[str, bytes]:
        """Every file of the store."""
        store = self.folder / "undisturbed"
        nodes.run("-c", INGEST, json.dumps({**self.options, "store": str(store)}))
        return contents(store)

    def disturbed(self, nodes: Nodes, name: str, share: float) -> tuple[dict[str, bytes], float]:
        """The same where a node goes after ``share`` of the cells, and after which share it went."""
        store, went = self.folder / name, None
        with nodes.program("-c", INGEST, json.dumps({**self.options, "store": str(store)})) as process:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                read = json.loads(line)[1] / CELLS if line.startswith('["read cells"') else 0.0
                if went is None and read >= share and (busy := nodes.busy(self.worker)):
                    nodes.lose(busy[0])
                    went = read
            assert process.wait() == 0, "".join(said)
        assert went is not None, "the ingest was through before its node was taken"
        return contents(store), went


def process_names(parent: int) -> Iterator[str]:
    """Of the processes that ``parent`` has started."""
    for child in psutil.Process(parent).children():
        with suppress(psutil.NoSuchProcess):
            yield child.name()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def write_source(folder: Path) -> Path:
    """Synthetic cells as h5ad, and their genes beside them as a vocabulary; the path of the cells."""
    genes = [f"GENE{number}" for number in range(GENES)]
    Vocabulary(tuple(genes)).write_tsv(folder / "genes.tsv")
    counts = sp.csr_matrix(np.random.default_rng(5).poisson(0.4, (CELLS, GENES)).astype(np.float32))
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(CELLS)])
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def main() -> None:
    """Run the soak and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()

    moments = random.Random(arguments.seed)
    went_after: list[float] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        source = write_source(Path(folder))
        work = Ingest(Path(folder), source)
        expected = None
        while len(went_after) < arguments.losses:
            with three_nodes() as nodes:
                if expected is None:
                    expected = work.undisturbed(nodes)
                result, went = work.disturbed(nodes, f"run{len(went_after)}", moments.uniform(0.1, 0.6))
            assert result == expected, "the ingest that lost a node has another result"
            went_after.append(round(went, 3))
            print(f"{len(went_after)}/{arguments.losses} lost after {went:.0%}", file=sys.stderr, flush=True)
    report = {
        "soak": "ingest on three nodes, one taken away",
        "losses": len(went_after),
        "results_identical": len(went_after),
        "lost_after_share": went_after,
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began, 1),
    }
    text = json.dumps(report, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
