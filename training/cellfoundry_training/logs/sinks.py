"""What every sink of numbers can do, and which there are."""

from __future__ import annotations

import importlib
import importlib.util
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cellfoundry_training.errors import TrainingError


class Sink(Protocol):
    """Takes a run's numbers on rank 0, steps ascending."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Note finite ``values`` of ``step``; names are parts joined by slashes."""

    def close(self, finished: bool) -> None:
        """Write what is still held back; ``finished`` says whether the run used up its budget."""


@dataclass(frozen=True)
class RunInfo:
    """What a sink is opened with.

    Attributes:
        folder: the run's.
        config: every value of the configuration.
        resumed_step: step after which the run goes on; 0 for a new one.
    """

    folder: Path
    config: dict[str, Any]
    resumed_step: int


@dataclass(frozen=True)
class SinkKind:
    """A sink by name.

    Attributes:
        module: file in this package, whose ``open_sink(RunInfo)`` gives the sink.
        package: what must be installed.
        extra: extra of cellfoundry that brings it; None where it always is.
        keeps_later_steps: whether a resumed run finds steps from after its checkpoint there still.
    """

    module: str
    package: str
    extra: str | None
    keeps_later_steps: bool

    def open(self, info: RunInfo) -> Sink:
        """Import the module and open the sink."""
        sink: Sink = importlib.import_module(f"cellfoundry_training.logs.{self.module}").open_sink(info)
        return sink


SINKS = {
    "tensorboard": SinkKind("tensorboard", "tensorboardX", None, keeps_later_steps=False),
    "mlflow": SinkKind("mlflow", "mlflow", "mlflow", keeps_later_steps=True),
    "wandb": SinkKind("wandb", "wandb", "wandb", keeps_later_steps=True),
}


def check_installed(names: Iterable[str]) -> None:
    """TrainingError naming the first sink whose package is missing here, and how to get it."""
    for name in names:
        kind = SINKS[name]
        if importlib.util.find_spec(kind.package) is None:
            wanted = f"cellfoundry[{kind.extra}]" if kind.extra else kind.package
            raise TrainingError(
                f"loggers has {name}, but the package {kind.package} is not installed: pip install '{wanted}', or "
                "take it out of loggers"
            )


def kept_id(file: Path) -> str:
    """The run's id at a service: as in ``file``, or a new one that is written there."""
    if not file.exists():
        temporary = file.with_suffix(".tmp")
        temporary.write_text(uuid.uuid4().hex)
        temporary.replace(file)
    return file.read_text().strip()
