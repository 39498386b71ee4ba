"""What a rank needs, beside DeepSpeed's own state, to go on exactly where a checkpoint was written."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch

TAG = "deepspeed"


@dataclass
class RunState:
    """Progress of a run; equal on all ranks but for ``loader``."""

    step: int = 0
    cells: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_heldout_loss: float = float("inf")
    evaluated_step: int = -1
    loader: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(engine: Any, state: RunState) -> None:
    """Write this rank's part and hand it to Ray Train, which merges the parts into one checkpoint. Collective."""
    rank = ray.train.get_context().get_world_rank()
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(folder, tag=TAG)
        torch.save({"state": asdict(state), "rng": torch.get_rng_state()}, Path(folder) / f"rank_{rank}.pt")
        ray.train.report({"step": state.step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def restore_checkpoint(engine: Any) -> RunState | None:
    """Load the run's last checkpoint into the engine; None if it has none yet. Collective."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    rank = ray.train.get_context().get_world_rank()
    with checkpoint.as_directory() as folder:
        engine.load_checkpoint(folder, tag=TAG)
        saved = torch.load(Path(folder) / f"rank_{rank}.pt", weights_only=True)
    torch.set_rng_state(saved["rng"])
    return RunState(**saved["state"])
