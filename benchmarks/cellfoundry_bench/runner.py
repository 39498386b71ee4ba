"""Run suites and leave one JSON file each: the numbers with everything needed to judge and repeat them."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cellfoundry_bench import machine
from cellfoundry_bench.atomic import write_text
from cellfoundry_bench.errors import BenchError
from cellfoundry_bench.registry import Suite, find_suite

Progress = Callable[[str, int, int], None]


def default_folder() -> Path:
    """Where results of today on this machine go: ``benchmarks/results/<date>-<device>``."""
    return Path("benchmarks/results") / f"{datetime.now(UTC).date().isoformat()}-{machine.slug()}"


def run(names: Sequence[str], out_dir: Path | str, progress: Progress | None = None) -> list[Path]:
    """Run the suites ``names`` in order and write ``<out_dir>/<name>.json``, each put in place in one move.

    Every name is checked before the first suite starts. A suite's earlier result in ``out_dir`` is replaced.

    Raises:
        BenchError: no name given, a name no suite has, or a package that a suite needs is missing.
    """
    if not names:
        raise BenchError("no benchmark suite was named; `cellfoundry bench list` shows them")
    suites = [find_suite(name) for name in names]
    out = Path(out_dir)
    if out.exists() and not out.is_dir():
        raise BenchError(f"{out} is a file, and benchmark results need a folder; give another --out")
    command = _command(names, out)
    paths = []
    for done, suite in enumerate(suites):
        if progress is not None:
            progress(suite.name, done, len(suites))
        text = json.dumps(_measure(suite, command), indent=2, allow_nan=False)
        paths.append(write_text(out / f"{suite.name}.json", text + "\n"))
    if progress is not None:
        progress("done", len(suites), len(suites))
    return paths


def _measure(suite: Suite, command: str) -> dict[str, Any]:
    """The record of one run of ``suite``."""
    measure = suite.load()
    busy_before = machine.busy_cores()
    start = time.perf_counter()
    result = measure()
    wall = time.perf_counter() - start
    return {
        "name": suite.name,
        "summary": suite.summary,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "versions": machine.versions(),
        "machine": machine.describe(),
        "wall_s": round(wall, 1),
        "busy_cores_before_and_after": [busy_before, machine.busy_cores()],
        "rows": [row.to_dict() for row in result.rows],
        "curves": [asdict(curve) for curve in result.curves],
    }


def _command(names: Sequence[str], out: Path) -> str:
    """The command line that repeats the run; a folder outside the current one means nothing elsewhere."""
    where = [] if out.is_absolute() or ".." in out.parts else ["--out", out.as_posix()]
    return shlex.join(["cellfoundry", "bench", "run", *names, *where])
