"""Says when training waits for data."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_STEPS = 50
TOLERATED_SHARE = 0.05


@dataclass
class DataStalls:
    """Share of the step time that went into waiting for data, judged once every ``WINDOW_STEPS`` steps."""

    steps: int = 0
    waited_s: float = 0.0
    seconds: float = 0.0

    def share(self, waited_s: float, seconds: float) -> float | None:
        """Count a step; at the end of a window the share, else None."""
        self.steps += 1
        self.waited_s += waited_s
        self.seconds += seconds
        if self.steps < WINDOW_STEPS:
            return None
        share = self.waited_s / self.seconds
        self.steps, self.waited_s, self.seconds = 0, 0.0, 0.0
        return share


def warning(share: float) -> str | None:
    """A sentence where the slowest rank waited for more than ``TOLERATED_SHARE`` of a window."""
    if share <= TOLERATED_SHARE:
        return None
    return (
        f"the last {WINDOW_STEPS} steps waited for data {share:.0%} of their time: put the store on a faster disk, or "
        "give each rank more CPU cores"
    )
