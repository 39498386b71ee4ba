"""MLflow: one run of the experiment MLFLOW_EXPERIMENT_NAME at MLFLOW_TRACKING_URI, its own environment variables."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cellfoundry_training.logs.sinks import RunInfo, Sink

if TYPE_CHECKING:
    from mlflow.entities import Metric

SEND_EVERY_S = 10.0
BATCH_METRICS = 800
"""MLflow takes at most 1,000 metrics in a request."""


class MlflowSink:
    """Collects metrics and sends them in batches, since a request a step would hold up short steps."""

    def __init__(self, info: RunInfo) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        run_file = info.folder / "mlflow_run_id"
        if run_file.exists():
            self._run_id = run_file.read_text().strip()
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cellfoundry")
            experiment = self._client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
            self._run_id = self._client.create_run(experiment_id, run_name=info.folder.name).info.run_id
            run_file.write_text(self._run_id)
            params = [Param(key, str(value)) for key, value in info.config.items()]
            self._client.log_batch(self._run_id, params=params)
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Sink``."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in values.items()]
        if len(self._waiting) >= BATCH_METRICS or time.monotonic() - self._sent >= SEND_EVERY_S:
            self._send()

    def close(self, finished: bool) -> None:
        """See ``Sink``."""
        self._send()
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "FAILED")

    def _send(self) -> None:
        for start in range(0, len(self._waiting), BATCH_METRICS):
            self._client.log_batch(self._run_id, metrics=self._waiting[start : start + BATCH_METRICS])
        self._waiting, self._sent = [], time.monotonic()


def open_sink(info: RunInfo) -> Sink:
    """The sink of a run."""
    return MlflowSink(info)
