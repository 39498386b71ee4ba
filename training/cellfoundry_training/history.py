"""metrics.jsonl: one JSON object a line, written by rank 0, read by the driver while the run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def append(path: Path, record: Record) -> None:
    """Add one line; a single write, so that a reader sees whole lines or none."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[Record]:
    """All whole lines in order; a line cut off by a crash is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


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
