"""Where a run keeps what it writes, and how a file of it is replaced."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cellfoundry_training.errors import TrainingError


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


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Keep other processes from training the run while the block lasts; the lock ends with this process at the latest.

    Raises:
        TrainingError: another process holds it.
    """
    folder = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"another process is training the run {run}: wait for it or stop it, or choose another --run"
            ) from error
        yield
    finally:
        os.close(folder)
