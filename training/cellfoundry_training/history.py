"""metrics.jsonl: one JSON object a line, written by rank 0, read by the driver while the run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
# An evaluation's line is about 2 kB and a step's 0.3 kB: the newest of both are within this of the end for minutes.
TAIL_BYTES = 65_536


def append(path: Path, records: Iterable[Record]) -> None:
    """Add lines; a single write, so that a reader sees whole lines. OSError where not all could be written: then the
    file is as it was.
    """
    with path.open("ab") as file:
        before = file.tell()
        try:
            file.write("".join(json.dumps(record) + "\n" for record in records).encode())
            file.flush()
        except OSError:
            file.truncate(before)
            raise


def read(path: Path) -> list[Record]:
    """All whole lines in order; a line cut off by a crash is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


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
        lines = file.read().splitlines(keepends=True)
    # The first line may have lost its head, the last one its end.
    tail = [json.loads(line) for line in lines if line.startswith(b'{"step"') and line.endswith(b"\n")]
    return Newest(
        next(iter(steps(tail)[-1:]), None),
        next(iter(evaluations(tail)[-1:]), None),
        [record for record in tail if "warning" in record],
    )


def truncate_after(path: Path, step: int) -> None:
    """Drop what was logged after ``step``: those steps will run again."""
    kept = [record for record in read(path) if record["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    temporary.replace(path)


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
