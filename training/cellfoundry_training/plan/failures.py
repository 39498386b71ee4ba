"""Plays a run on a cluster whose devices fail, to choose how often it saves.

A segment is an interval of work and the save after it; a failure costs the part of the segment that was done, and a
restart, in which the next failure may fall. Failures come at random, without memory (Daly 2006, "A higher order
estimate of the optimum checkpoint interval for restart dumps", whose expected time the tests compare with).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfoundry_training.errors import TrainingError

Floats = npt.NDArray[np.float64]
# 419 unexpected interruptions in 54 days on 16,384 H100 (Dubey et al. 2024, "The Llama 3 Herd of Models", 3.3.4).
GPU_HOURS_BETWEEN_FAILURES = 54 * 24 * 16_384 / 419
# A segment that takes so many times the mean time between failures is done once in e^4 = 55 tries: nobody runs so.
HOPELESS = 4
# As many plays as make so many failures, within bounds: a few 0.1 s.
FAILURES_PLAYED, PLAYS = 1e6, (200, 20_000)


@dataclass(frozen=True)
class Faults:
    """How a run is disturbed; seconds.

    Attributes:
        between: mean time between failures of the whole cluster.
        save: how long training stands still for a checkpoint.
        restart: from a failure until steps run again.
        write: how long a checkpoint is written while training goes on; the next save waits for it.
    """

    between: float
    save: float
    restart: float
    write: float = 0.0


@dataclass(frozen=True)
class Played:
    """Wall time of a run that saves at one interval, over many plays; seconds.

    Attributes:
        interval: of work between saves.
        mean: of the wall time.
        low: 5th percentile.
        high: 95th percentile.
        failures: mean number.
    """

    interval: float
    mean: float
    low: float
    high: float
    failures: float


def young_interval(faults: Faults) -> float:
    """Young's first-order optimum, sqrt(2 x save x between) (Young 1974, CACM 17:530)."""
    return float(np.sqrt(2 * faults.save * faults.between))


def expected_seconds(work: float, interval: float, faults: Faults) -> float:
    """Daly's expected wall time (his equation 13 before approximation), for whole numbers of segments."""
    rate = 1 / faults.between
    segment = np.exp(rate * faults.restart) * np.expm1(rate * (interval + faults.save)) / rate
    return float(work / interval * segment)


def play(work: float, interval: float, faults: Faults, plays: int, rng: np.random.Generator) -> Played:
    """Wall times of ``plays`` runs of ``work`` seconds; a run's last segment may be short, but is saved too."""
    segments, rest = divmod(work, interval)
    wall, failures = _segments(interval + faults.save, np.full(plays, int(segments)), faults, rng)
    if rest > 0:
        more, further = _segments(rest + faults.save, np.ones(plays, np.int64), faults, rng)
        wall, failures = wall + more, failures + further
    low, high = np.percentile(wall, (5, 95))
    return Played(interval, float(wall.mean()), float(low), float(high), float(failures.mean()))


def _segments(
    seconds: float, count: npt.NDArray[np.int64], faults: Faults, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Wall time and failures of ``count`` segments of ``seconds`` for each play."""
    failures = rng.negative_binomial(np.maximum(count, 1), np.exp(-seconds / faults.between)) * (count > 0)
    lost = _lost(seconds, int(failures.sum()), faults, rng)
    retries = _restart_failures(len(lost), faults, rng)
    again = _lost(faults.restart, int(retries.sum()), faults, rng)
    lost += faults.restart + np.bincount(np.repeat(np.arange(len(lost)), retries), again, len(lost))
    play_of = np.repeat(np.arange(len(count)), failures)
    wall = count * seconds + np.bincount(play_of, lost, len(count))
    total = failures + np.bincount(play_of, retries, len(count))
    return wall.astype(np.float64), total.astype(np.float64)


def _restart_failures(restarts: int, faults: Faults, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """How often each restart was itself interrupted."""
    return rng.geometric(np.exp(-faults.restart / faults.between), restarts) - 1


def _lost(within: float, count: int, faults: Faults, rng: np.random.Generator) -> Floats:
    """Times of failures, given that they came within ``within`` seconds: an exponential cut off there."""
    share = -np.expm1(-within / faults.between)
    return -faults.between * np.log1p(-rng.random(count) * share)


def best_interval(work: float, step: float, faults: Faults, seed: int = 0) -> tuple[Played, list[Played]]:
    """The interval with the lowest mean wall time, and all that were played.

    Intervals are whole steps of ``step`` seconds, from an eighth to eight times Young's, the run's length at most,
    but long enough for a checkpoint to be written meanwhile.

    Raises:
        TrainingError: failures so frequent that such a run would never end.
    """
    around = young_interval(faults) * 2.0 ** np.arange(-3, 3.5, 0.5)
    fewest = max(1, np.ceil(faults.write / step))
    steps = np.unique(np.clip(np.round(around / step), fewest, max(fewest, work // step)))
    shortest = float(steps[0] * step) + faults.save + faults.restart
    if shortest > HOPELESS * faults.between:
        raise TrainingError(
            f"a failure every {faults.between:.3g} s leaves no time for a step, a save and a restart "
            f"({shortest:.3g} s): use fewer devices, or raise the time between failures"
        )
    steps = steps[steps * step <= HOPELESS * faults.between]
    failures = work / faults.between
    plays = int(np.clip(FAILURES_PLAYED / max(failures, 1e-9), *PLAYS))
    played = [
        play(work, float(count * step), faults, plays, np.random.default_rng([seed, index]))
        for index, count in enumerate(steps)
    ]
    return min(played, key=lambda one: one.mean), played
