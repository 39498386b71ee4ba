"""Weights & Biases: one run of the project WANDB_PROJECT, by its own environment variables (WANDB_MODE=offline too)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cellfoundry_training.logs.sinks import RunInfo, Sink, kept_id


class WandbSink:
    """Logs to a run whose id lies in the run's folder, so that a resumed run goes on in the same one."""

    def __init__(self, info: RunInfo) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cellfoundry"),
            name=info.folder.name,
            id=kept_id(info.folder / "wandb_run_id"),
            resume="allow",
            dir=info.folder,
            config=info.config,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Sink``."""
        self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        """See ``Sink``."""
        self._run.finish(exit_code=0 if finished else 1)


def open_sink(info: RunInfo) -> Sink:
    """The sink of a run."""
    return WandbSink(info)
