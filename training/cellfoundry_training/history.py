"""metrics.jsonl: one JSON object a line, written by rank 0, read by the driver while the run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellfoundry_training.files import replace_text

Record = dict[str, Any]
# An evaluation's line is about 2 kB and a step's 0.3 kB: the newest of both are within this of the end for minutes.
TAIL_BYTES = 65_536


def append(path: Path, records: Iterable[Record]) -> None:
    """Add lines; a single write, so that a reader sees whole lines. OSError where not all could be written: then the
    file is as it was.
    """
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    # Not through Python's buffer, which would write what is left of the lines once more when it is closed.
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            written = 0
            while written < len(lines):  # a disk takes what it has room for and refuses the next write
                written += file.write(lines[written:])
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise


def read(path: Path) -> list[Record]:
    """All whole lines in order; a line cut off by a crash is left out."""
    return _records(path.read_bytes()) if path.exists() else []


def _records(text: bytes) -> list[Record]:
    """One a line; what a crash or a full disk left of a line is passed over."""
    found = []
    for line in text.splitlines(keepends=True):
        if line.startswith(b'{"step"') and line.endswith(b"\n"):
            try:
                found.append(json.loads(line))
            except ValueError:  # a half line with another behind it
                continue
    return found


@dataclass(frozen=True)
class Newest:
    """The end of a metrics file.

    Attributes:
        step: the newest line of a step, None if there is none near the end.
        evaluation: the newest one of an evaluation, likewise.
        warnings: all lines of warnings near the end, in order.
    """

    step: Record | None
    evaluation: Record | None
    warnings: list[Record]


def newest(path: Path) -> Newest:
    """What a reader who looks now and then wants to see; the file is not read whole."""
    if not path.exists():
        return Newest(None, None, [])
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        tail = _records(file.read())
    return Newest(
        next(iter(steps(tail)[-1:]), None),
        next(iter(evaluations(tail)[-1:]), None),
        [record for record in tail if "warning" in record],
    )


def truncate_after(path: Path, step: int) -> None:
    """Drop what was logged after ``step``: those steps will run again."""
    kept = [record for record in read(path) if record["step"] <= step]
    replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def is_evaluation(record: Record) -> bool:
    """Whether a line is of an evaluation on held-out cells."""
    return "heldout_loss" in record


def evaluations(records: list[Record]) -> list[Record]:
    """The lines of evaluations on held-out cells."""
    return [record for record in records if is_evaluation(record)]


def steps(records: list[Record]) -> list[Record]:
    """The lines of optimizer steps."""
    return [record for record in records if "loss" in record]


def best_evaluation(records: list[Record]) -> Record | None:
    """The evaluation with the lowest held-out loss; None where there is none with a number."""
    measured = [record for record in evaluations(records) if record["heldout_loss"] is not None]
    return min(measured, key=lambda record: record["heldout_loss"], default=None)
