"""What ranks agree on between steps, and when the next save is due."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from cellfoundry_training.config import PretrainConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Word:
    """One rank's word, or what all agreed on: the largest of each.

    Attributes:
        share: of the budget that is used; the run ends at 1.
        stop: whether the run shall be saved and end now.
        save_due: whether it is time for a checkpoint.
        writing: whether a part of the last checkpoint is still being written.
    """

    share: float
    stop: bool
    save_due: bool
    writing: bool

    def agreed(self, device: torch.device) -> Word:
        """The same on all ranks. Collective."""
        words = torch.tensor(
            [self.share, self.stop, self.save_due, self.writing], dtype=torch.float64, device=device
        )
        dist.all_reduce(words, op=dist.ReduceOp.MAX)
        share, stop, save_due, writing = words.tolist()
        return Word(share, bool(stop), bool(save_due), bool(writing))


class SaveClock:
    """When to save, by steps and by minutes.

    Attributes:
        step: of the last save, or where the run began.
    """

    def __init__(self, config: PretrainConfig, step: int) -> None:
        self.step = step
        self._every_steps, self._every_minutes = (
            config.checkpoint_every_steps,
            config.checkpoint_every_minutes,
        )
        self._since = time.monotonic()

    def saved(self, step: int) -> None:
        """Note that ``step`` was saved."""
        self.step, self._since = step, time.monotonic()

    def due_at(self, step: int) -> bool:
        """Whether ``step`` is one to save by the count of steps."""
        return self._every_steps is not None and step % self._every_steps == 0

    def minutes_passed(self) -> bool:
        """Whether it is time by this rank's clock."""
        return self._every_minutes is not None and time.monotonic() - self._since >= 60 * self._every_minutes


def from_rank_0(value: T) -> T:
    """Rank 0's ``value`` on all ranks. Collective."""
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]
