"""Ingest against annbatch's conversion of the same files: CPU and memory of every process involved."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cellfoundry_bench.atlas.bench import SYNTHETIC, Bench
from cellfoundry_bench.measure import Comparison
from cellfoundry_bench.peers.driven import Driven, touch_files
from cellfoundry_bench.peers.environments import ANNBATCH, NotMeasured
from cellfoundry_bench.peers.processes import PROC, ProcessTree, Usage
from cellfoundry_bench.results import Row


@dataclass(frozen=True)
class Conversion:
    """What one conversion cost; processes are those of ``ProcessTree``."""

    usage: dict[str, list[Usage]]
    wall_s: float

    def cpu_s(self, *kinds: str) -> float:
        """CPU-seconds of the processes of these kinds."""
        return sum(one.cpu_s for kind in kinds for one in self.usage.get(kind, ()))

    def peak_gb(self, kind: str) -> float:
        """Largest memory of one process of this kind, in GB."""
        return max((one.peak_bytes for one in self.usage.get(kind, ())), default=0) / 1e9


def conversion_rows(bench: Bench) -> list[Row]:
    """Ours in turn with annbatch where it is to be had, else ours alone; our last store stays for the other parts."""
    if not PROC.exists():
        raise NotMeasured("the processes of an ingest are measured through /proc, which this system lacks")
    ours: list[Conversion] = []
    peers: list[Conversion] = []
    reason = ""
    while len(ours) < bench.settings.conversions:
        if not reason:
            try:
                with bench.peer(ANNBATCH) as peer:
                    out = bench.folder / "converted-by-annbatch"
                    peers.append(_convert(bench, peer, out))
                shutil.rmtree(out)
            except NotMeasured as error:
                reason = str(error)
        out = bench.store_folder(SYNTHETIC, "compact")
        shutil.rmtree(out, ignore_errors=True)
        with bench.ours() as process:
            ours.append(_convert(bench, process, out, profile="compact"))
    return _rows(bench.atlas.cells, ours, peers, reason)


def _convert(bench: Bench, process: Driven, out: Path, **settings: Any) -> Conversion:
    touch_files(bench.atlas.files)
    process.do("ready")  # answers once everything is imported
    began = time.perf_counter()
    with ProcessTree(process.pid) as tree:
        process.do("prepare", sources=bench.atlas.files, out=str(out), **settings)
        wall_s = time.perf_counter() - began
    return Conversion(tree.usage(), wall_s)


def _rows(cells: int, ours: list[Conversion], peers: list[Conversion], reason: str) -> list[Row]:
    cpu = [one.cpu_s("driver", "worker") for one in ours]
    workers = max(len(one.usage.get("worker", ())) for one in ours)
    what, unit = f"ingest of {cells:,} cells", "cells/CPU-s"
    note = (
        f"driver and {workers} workers, their start included; Ray's own daemons took "
        f"{median(one.cpu_s('daemon') for one in ours):.1f} CPU-s more"
    )
    if peers:
        theirs = [one.cpu_s("driver", "worker", "daemon") for one in peers]
        wall = median(one.wall_s for one in peers)
        speed = Comparison(cpu[: len(theirs)], theirs).rate_row(
            what, cells, unit, ANNBATCH.name, bar=2.0, note=f"{note}; the peer took {wall:.0f} s of wall time"
        )
        reason = f"{ANNBATCH.name}: {max(one.peak_gb('driver') for one in peers):.2f} GB in its one process"
    else:
        speed = Row(what, cells / median(cpu), unit, ANNBATCH.name, bar=2.0, note=f"{note}; {reason}")
    worker, driver = (max(one.peak_gb(kind) for one in ours) for kind in ("worker", "driver"))
    return [
        speed,
        Row("ingest, peak memory of a worker", worker, "GB", bar=2.0, bar_is="at most", note=reason),
        Row("ingest, peak memory of the driver", driver, "GB", note="the process that calls ingest"),
        Row("ingest, wall time", median(one.wall_s for one in ours), "s", note="Ray's start included"),
    ]
