"""metrics.jsonl: one JSON object a line, written by rank 0, read by the driver while the run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]
TAIL_BYTES = 4096


def append(path: Path, record: Record) -> None:
    """Add one line; a single write, so that a reader sees whole lines or none."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[Record]:
    """All whole lines in order; a line cut off by a crash is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def last_step(path: Path) -> Record | None:
    """The newest line of a step, found without reading the whole file; None if there is none yet."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().splitlines(keepends=True)
    # The first line may have lost its head, the last one its end.
    whole = [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"\n")]
    return next((record for record in reversed(whole) if "loss" in record), None)


def truncate_after(path: Path, step: int) -> None:
    """Drop what was logged after ``step``: those steps will run again."""
    kept = [record for record in read(path) if record["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    temporary.replace(path)


def evaluations(records: list[Record]) -> list[Record]:
    """The lines of evaluations on held-out cells."""
    return [record for record in records if "heldout_loss" in record]


def steps(records: list[Record]) -> list[Record]:
    """The lines of optimizer steps."""
    return [record for record in records if "loss" in record]
