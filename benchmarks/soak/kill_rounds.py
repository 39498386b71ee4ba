"""The rounds of a soak that kills: another mode each time, until so many kills hit a run that was under way."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Kills:
    """What was killed.

    Attributes:
        stages: how often in each stage of a run.
        modes: how often in each mode.
        too_late: runs that were through before.
    """

    stages: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    too_late: int = 0


def kill_rounds(kills: int, modes: Sequence[str], kill_once: Callable[[str], str | None], same: str) -> Kills:
    """Call ``kill_once`` with the modes in turn; it gives the stage it hit, or None where the run was through.

    ``same`` is what it has then found to be the same, for the line on stderr.
    """
    done = Kills()
    while done.stages.total() < kills:
        mode = modes[(done.stages.total() + done.too_late) % len(modes)]
        stage = kill_once(mode)
        if stage is None:
            done.too_late += 1
            continue
        done.stages[stage] += 1
        done.modes[mode] += 1
        print(f"{done.stages.total()}/{kills} {mode}: {stage}, the same {same}", file=sys.stderr, flush=True)
    return done
