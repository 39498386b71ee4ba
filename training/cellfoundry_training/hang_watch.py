"""Ends a run in which a rank hangs, and names the rank.

A collective waits for every rank, so one that hangs holds up all others without a word. Each rank has a thread that
writes a small heartbeat file into the run's folder, which all ranks see. When a rank made no progress for the time
limit, its thread reads all heartbeats, finds who is behind, leaves the sentence for the driver and ends the process:
the main thread cannot do it, since it waits inside a collective.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from cellfoundry_training.files import RunFiles
from cellfoundry_training.step_clock import StepClock

EXIT_HUNG = 75
BEATS_PER_LIMIT = 6
LONGEST_BEAT_S = 5.0


@dataclass(frozen=True)
class Heartbeat:
    """What a rank did last.

    Attributes:
        tick: how often the thread has beaten; stands still once the process does.
        step: optimizer steps done.
        collectives: collectives entered so far.
        phase: of the step, or "evaluation" or "checkpoint".
        process: pid and host, for whoever looks after it.
    """

    tick: int
    step: int
    collectives: int
    phase: str
    process: str

    @property
    def progress(self) -> tuple[int, int, str]:
        """What changes as long as the rank does not hang."""
        return self.step, self.collectives, self.phase


class HangWatch:
    """A rank's heartbeat, and its watch over itself, while the ``with`` block runs.

    Args:
        files: of the run.
        rank: this one.
        ranks: how many there are.
        limit_s: seconds that a rank may stay in one phase.
        clock: tells what the rank does.
    """

    def __init__(self, files: RunFiles, rank: int, ranks: int, limit_s: float, clock: StepClock) -> None:
        self.step = 0
        self._files, self._rank, self._ranks = files, rank, ranks
        self._limit_s, self._clock = limit_s, clock
        self._beat_s = min(LONGEST_BEAT_S, limit_s / BEATS_PER_LIMIT)
        self._process = f"pid {os.getpid()} on {socket.gethostname()}"
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cellfoundry-hang-watch", daemon=True)

    def __enter__(self) -> HangWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finished.set()
        self._thread.join()

    def _watch(self) -> None:
        own = Heartbeat(0, -1, 0, "", self._process)
        since = time.monotonic()
        others: dict[int, Heartbeat] = {}
        heard = dict.fromkeys(range(self._ranks), since)
        while not self._finished.wait(self._beat_s):
            before = own
            own = Heartbeat(
                before.tick + 1, self.step, self._clock.collectives, self._clock.phase, self._process
            )
            _write(self._path(self._rank), own)
            now = time.monotonic()
            for rank in range(self._ranks):
                beat = own if rank == self._rank else _read(self._path(rank))
                if beat is not None and beat != others.get(rank):
                    others[rank], heard[rank] = beat, now
            if own.progress != before.progress:
                since = now
            elif now - since > self._limit_s:
                silent = {rank for rank in heard if now - heard[rank] > self._limit_s / 2}
                self._end(verdict(others, silent, self._ranks, self._limit_s))

    def _path(self, rank: int) -> Path:
        return self._files.heartbeats / f"rank_{rank}.json"

    def _end(self, sentence: str) -> None:
        temporary = self._files.hang.with_suffix(f".{self._rank}.tmp")
        temporary.write_text(sentence)
        temporary.replace(self._files.hang)
        os._exit(EXIT_HUNG)


def verdict(beats: dict[int, Heartbeat], silent: set[int], ranks: int, limit_s: float) -> str:
    """One sentence that names the ranks which the others wait for.

    Args:
        beats: each rank's last heartbeat; a rank may lack one.
        silent: ranks without a new heartbeat for a while: their process stands still or is gone.
        ranks: how many there are.
        limit_s: what passed without progress.
    """
    limit = f"within collective_timeout_s ({limit_s:g} s)"
    behind = silent or _behind(beats)
    if not behind:
        return (
            f"all {ranks} ranks entered the same collective and none left it {limit}: check the network between the "
            "nodes; --resume continues from the last checkpoint"
        )
    names = " and ".join(_describe(rank, beats.get(rank), rank in silent) for rank in sorted(behind))
    return (
        f"a collective of {ranks} ranks did not end {limit}, because of {names}: look there for what holds it up; "
        "--resume continues from the last checkpoint"
    )


def _behind(beats: dict[int, Heartbeat]) -> set[int]:
    """Ranks that entered fewer collectives than others; none if all entered as many."""
    counts = {rank: beat.collectives for rank, beat in beats.items()}
    least, most = min(counts.values()), max(counts.values())
    return {rank for rank, count in counts.items() if count == least} if least < most else set()


def _describe(rank: int, beat: Heartbeat | None, is_silent: bool) -> str:
    state = "which no longer responds" if is_silent else "which is behind"
    if beat is None:
        return f"rank {rank}, which never began"
    return f"rank {rank} ({beat.process}), {state} in {beat.phase} after step {beat.step}"


def _write(path: Path, beat: Heartbeat) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        temporary.write_text(json.dumps(asdict(beat)))
        temporary.replace(path)
    except OSError:
        # A full disk must not end a run through its watch; the rank then counts as silent, should another hang.
        return


def _read(path: Path) -> Heartbeat | None:
    try:
        return Heartbeat(**json.loads(path.read_text()))
    except OSError:
        return None
