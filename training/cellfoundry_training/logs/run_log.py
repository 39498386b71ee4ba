"""The log of a run on rank 0: every record to metrics.jsonl, its numbers to the sinks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

from cellfoundry_training import history
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.history import Record
from cellfoundry_training.logs.sinks import SINKS, RunInfo, Sink

TRAIN, HELDOUT = "train", "heldout"


class RunLog:
    """Opens a run's log, new or resumed; metrics.jsonl loses what came after ``step``, since that will run again.

    A sink that fails (a tracking server that is down, a disk that is full) is given up with a warning, because the
    run is worth more than its picture; metrics.jsonl has every number, though late while the disk is full.
    """

    def __init__(self, metrics: Path, config: PretrainConfig, step: int) -> None:
        self._metrics = metrics
        self._unwritten: list[Record] = []
        self._already = _last_steps(history.read(metrics))
        history.truncate_after(metrics, step)
        info = RunInfo(metrics.parent, config.model_dump(), step)
        self._sinks: dict[str, Sink] = {}
        for name in config.loggers:
            try:
                self._sinks[name] = SINKS[name].open(info)
            except Exception as error:  # services raise errors of their own kinds
                _warn(name, error)

    def write(self, record: Record) -> None:
        """Note a record of a step or an evaluation; numbers that are not finite stay out of the sinks."""
        self._unwritten.append(record)
        self._write_lines()
        group = _group(record)
        values = scalars(record)
        for name, sink in list(self._sinks.items()):
            # A service still has the steps that a resumed run repeats.
            if SINKS[name].keeps_later_steps and record["step"] <= self._already.get(group, 0):
                continue
            try:
                sink.scalars(record["step"], values)
            except Exception as error:
                del self._sinks[name]
                _warn(name, error)

    def _write_lines(self) -> None:
        try:
            history.append(self._metrics, self._unwritten)
        except OSError:
            return  # with the next line again
        self._unwritten.clear()

    def close(self, finished: bool) -> None:
        """Close every sink."""
        for name, sink in self._sinks.items():
            try:
                sink.close(finished)
            except Exception as error:
                _warn(name, error)


def scalars(record: Record) -> dict[str, float]:
    """Numbers of a record by name: ``train/loss``, ``heldout/pearson_mean``, ``heldout/by_depth/1k-2k/loss``."""
    values = _numbers(record, _group(record))
    for entry in record.get("by_depth", []):
        # TensorBoard takes no spaces in names.
        depth = f"{entry['depth']}{' thinned' if entry['thinned'] else ''}".replace(" ", "_")
        place = f"{HELDOUT}/by_depth/{depth}"
        values |= _numbers({key: entry[key] for key in ("loss", "gene_mean_loss")}, place)
    return values


def _group(record: Record) -> str:
    return HELDOUT if history.is_evaluation(record) else TRAIN


def _numbers(record: Mapping[str, object], place: str) -> dict[str, float]:
    return {
        f"{place}/{key}": float(value)
        for key, value in record.items()
        if key != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def _last_steps(records: list[Record]) -> dict[str, int]:
    return {_group(record): record["step"] for record in records}


def _warn(name: str, error: Exception) -> None:
    reason = " ".join(str(error).split())[:300]
    warnings.warn(f"logging to {name} failed and goes on without it ({reason})", stacklevel=2)
