"""Where a run keeps what it writes."""

from __future__ import annotations

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
        """Ray Train's folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """Model directory with the lowest held-out loss so far."""
        return self.folder / "model"

    @property
    def failure(self) -> Path:
        """Tracebacks of an error that nobody foresaw."""
        return self.folder / "error.log"

    @property
    def heartbeats(self) -> Path:
        """What each rank did last, a small file a rank, while the run goes on."""
        return self.folder / "heartbeats"

    @property
    def hang(self) -> Path:
        """The sentence of a rank that ended the run because another hung."""
        return self.folder / "hang.txt"
