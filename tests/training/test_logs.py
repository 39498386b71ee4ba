"""Where a run's numbers go beside metrics.jsonl, read back with each service's own reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from cellfoundry_training import history
from cellfoundry_training.config import PretrainConfig, load_config
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.logs.run_log import RunLog
from cellfoundry_training.logs.sinks import SINKS, check_installed


def config(*loggers: str) -> PretrainConfig:
    return load_config("tiny", [f"loggers=[{', '.join(loggers)}]"])


def step(number: int, loss: float) -> dict[str, Any]:
    return {"step": number, "loss": loss, "cells": 8 * number, "lr": 0.1}


def evaluation(number: int) -> dict[str, Any]:
    depth = {
        "depth": "1k-2k",
        "thinned": True,
        "loss": 0.25,
        "gene_mean_loss": 0.5,
        "cells": 3,
        "positions": 9,
    }
    return {"step": number, "heldout_loss": 0.5, "pearson_mean": None, "by_depth": [depth]}


def tensorboard_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_tensorboard_has_every_number_and_a_resumed_run_no_step_twice(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    log = RunLog(metrics, config("tensorboard"), 0)
    for number in range(1, 5):
        log.write(step(number, 1.0 / number))
    log.write(evaluation(4))
    log.close(finished=False)
    resumed = RunLog(metrics, config("tensorboard"), 2)
    for number in range(3, 6):
        resumed.write(step(number, 10.0 * number))
    resumed.close(finished=True)
    found = tensorboard_scalars(tmp_path)
    assert found["train/loss"] == [(1, 1.0), (2, 0.5), (3, 30.0), (4, 40.0), (5, 50.0)]
    assert [line["step"] for line in history.read(metrics)] == [1, 2, 3, 4, 5]
    # The evaluation of the first attempt came after the checkpoint, so it is void; it had no Pearson correlation.
    assert "heldout/pearson_mean" not in found


def test_evaluations_are_told_by_depth(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl", config("tensorboard"), 0)
    log.write(evaluation(4))
    log.close(finished=True)
    found = tensorboard_scalars(tmp_path)
    assert found["heldout/heldout_loss"] == [(4, 0.5)]
    assert found["heldout/by_depth/1k-2k_thinned/loss"] == [(4, 0.25)]
    assert "heldout/pearson_mean" not in found


@pytest.mark.filterwarnings("default::DeprecationWarning")  # of mlflow 3 about sqlalchemy 2.1
def test_mlflow_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is an extra")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    log = RunLog(tmp_path / "metrics.jsonl", config("mlflow"), 0)
    for number in range(1, 4):
        log.write(step(number, 1.0 / number))
    log.close(finished=True)
    run_id = (tmp_path / "mlflow_run_id").read_text()
    losses = mlflow.MlflowClient().get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in losses] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


class FullDisk:
    """A sink whose disk is full from the second record on."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self.taken:
            raise OSError("no space left on device")
        self.taken.append(step)

    def close(self, finished: bool) -> None:
        raise AssertionError("a sink that failed is not asked again")


def test_a_sink_that_fails_is_given_up_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = FullDisk()
    monkeypatch.setattr(type(SINKS["tensorboard"]), "open", lambda kind, info: sink)
    log = RunLog(tmp_path / "metrics.jsonl", config("tensorboard"), 0)
    log.write(step(1, 1.0))
    with pytest.warns(UserWarning, match="logging to tensorboard failed and goes on without it"):
        log.write(step(2, 1.0))
    log.write(step(3, 1.0))
    log.close(finished=True)
    assert sink.taken == [1]
    assert [line["step"] for line in history.read(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_full_disk_delays_lines_and_leaves_no_half_of_one(
    tmp_path: Path, files_no_larger_than: Callable[[int], AbstractContextManager[None]]
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    log = RunLog(metrics, config(), 0)
    log.write(step(1, 1.0))
    before = metrics.read_bytes()
    with files_no_larger_than(len(before) + 5):
        log.write(step(2, 1.0))
        assert metrics.read_bytes() == before
    log.write(step(3, 1.0))
    assert [line["step"] for line in history.read(metrics)] == [1, 2, 3]


def test_half_a_line_of_a_crash_hides_no_other_one(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    history.append(metrics, [step(1, 1.0)])
    with metrics.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    history.append(metrics, [step(3, 1.0)])
    history.append(metrics, [step(4, 1.0)])
    assert [line["step"] for line in history.read(metrics)] == [1, 4]
    assert history.newest(metrics) == history.Newest(step(4, 1.0), None, [])
    RunLog(metrics, config(), 4)
    assert [line["step"] for line in history.read(metrics)] == [1, 4]


def test_a_logger_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        TrainingError, match=r"package wandb is not installed: pip install 'cellfoundry\[wandb\]'"
    ):
        check_installed(["wandb"])


def test_an_unknown_logger_is_refused() -> None:
    with pytest.raises(TrainingError, match="loggers"):
        config("comet")
