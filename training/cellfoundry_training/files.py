"""Where a run keeps what it writes, and how a file of it is replaced."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFiles:
    """Paths inside a run's folder, which every rank must see."""

    folder: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, every value."""
        return self.folder / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a step and an evaluation."""
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """A folder for every checkpoint, by step."""
        return self.folder / "checkpoints"

    @property
    def ray(self) -> Path:
        """What Ray Train notes for itself; nothing of the run depends on it."""
        return self.folder / "ray"

    @property
    def model(self) -> Path:
        """Model directory with the lowest held-out loss so far."""
        return self.folder / "model"

    @property
    def stop(self) -> Path:
        """Asks the ranks to save and end, while it exists."""
        return self.folder / "stop"

    @property
    def failure(self) -> Path:
        """Errors that nobody foresaw and losses of ranks since the run was last started, with their tracebacks."""
        return self.folder / "error.log"

    @property
    def heartbeats(self) -> Path:
        """What each rank did last, a small file a rank, while the run goes on."""
        return self.folder / "heartbeats"

    @property
    def hang(self) -> Path:
        """The sentence of a rank that ended the run because another hung."""
        return self.folder / "hang.txt"


def replace_text(path: Path, text: str) -> None:
    """Write a file whole; OSError where the disk does not take it: then the former one stays."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
