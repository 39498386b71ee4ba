"""How far a run has come: what a checkpoint keeps beside weights and moments, equal on all ranks."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class RunState(BaseModel):
    """Progress of a run."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    step: int = 0
    """Optimizer steps, skipped ones counted."""
    cells: int = 0
    """Cells of all steps, repeats counted."""
    tokens: int = 0
    """Encoder tokens of all steps."""
    seconds: float = 0.0
    """Wall time of the steps."""
    skipped: int = 0
    """Steps that were not applied."""
    skipped_in_a_row: int = 0
    """Of these the latest ones, where the latest step is one of them."""
    learning_rate: float = 0.0
    """Of the latest step; the schedule itself is a function of step and budget."""
    best_heldout_loss: float | None = None
    """Lowest held-out loss so far."""
    evaluated_step: int | None = None
    """Step of the latest evaluation."""
    heldout_loss: float | None = None
    """Of the latest evaluation; None where it was no number."""
    loader: dict[str, Any] = {}
    """Where the stream of cells stands; see ``ShardDataset.state_dict``."""
