"""Runs that are hurt go on and come to the very result of the run that was not: real ranks, real signals."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from lose_node import three_nodes

from cellfoundry_model.checkpoint import load_model
from cellfoundry_training import checkpoint_files, history
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.files import RunFiles, held
from cellfoundry_training.following import missing_nodes
from cellfoundry_training.pretrain import PretrainResult, pretrain

from .conftest import RUN_SETTINGS, RUN_STEPS, run_config

COMMAND = Path(sys.executable).parent / "cellfoundry"
CLOCK = {"seconds", "cells_per_s", "tokens_per_s", "mfu"}
PATIENCE_S = 170


def computed(path: Path) -> list[dict[str, Any]]:
    """The lines of steps and evaluations without what the clock decides."""
    lines = [line for line in history.read(path) if "warning" not in line]
    return [
        {key: value for key, value in line.items() if key not in CLOCK and not key.endswith("_s")}
        for line in lines
    ]


def warnings(path: Path) -> list[str]:
    return [line["warning"] for line in history.read(path) if "warning" in line]


def steps_done(files: RunFiles) -> int:
    newest = history.newest(files.metrics).step
    return newest["step"] if newest else 0


def wait_until(happened: Callable[[], bool], alive: Callable[[], bool]) -> None:
    """Look often; the run must not end before."""
    began = time.monotonic()
    while not happened():
        assert alive(), "the run ended before that happened"
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.01)


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """Ray Train's worker processes below ``process``."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_full_disk_and_a_killed_rank_change_nothing(
    undisturbed: PretrainResult, store: Path, tmp_path: Path
) -> None:
    files = RunFiles(tmp_path / "run")
    results: list[PretrainResult] = []
    shown: list[dict[str, Any]] = []
    run = threading.Thread(
        target=lambda: results.append(pretrain(run_config(), store, files.folder, watch=shown.append))
    )
    run.start()
    wait_until(lambda: steps_done(files) >= 1, run.is_alive)
    ranks = ranks_of(psutil.Process())
    assert len(ranks) == 2
    former = [resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (65_536, -1)) for rank in ranks]
    wait_until(lambda: bool(warnings(files.metrics)), run.is_alive)
    for rank, limit in zip(ranks, former, strict=True):
        resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, limit)
    failed_at = steps_done(files)
    wait_until(lambda: bool(checkpoint_files.listed(files.checkpoints)), run.is_alive)
    ranks[1].kill()
    run.join()

    (result,) = results
    full, lost = warnings(files.metrics)
    assert str(files.checkpoints) in full
    assert "File too large" in full
    assert "started again by itself on 2 ranks" in lost
    assert f"losses of ranks are in {files.failure}" in lost
    assert {record["warning"] for record in shown if "warning" in record} == {full, lost}
    assert 0 < failed_at < RUN_STEPS
    assert computed(files.metrics) == computed(undisturbed.history)
    assert weights(result) == weights(undisturbed)


def weights(result: PretrainResult) -> str:
    return str(load_model(result.model_dir).info["weights_sha256"])


def test_another_world_goes_on_from_the_checkpoint_before_a_damaged_one(
    undisturbed: PretrainResult, store: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed.history.parent, run)
    newest, before = checkpoint_files.listed(RunFiles(run).checkpoints)
    part = next(newest.glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1])
    config = run_config("workers=1", "gradient_accumulation=4", "zero_stage=2")
    resumed = pretrain(config, store, run, resume=True)
    (sentence,) = warnings(resumed.history)
    assert str(newest) in sentence
    assert f"goes on from {before}" in sentence
    ours, theirs = computed(resumed.history), computed(undisturbed.history)
    assert [line.get("cell_rows") for line in ours] == [line.get("cell_rows") for line in theirs]
    assert ours[-1]["heldout_loss"] == pytest.approx(theirs[-1]["heldout_loss"], rel=1e-5)
    assert resumed.final_heldout_loss != undisturbed.final_heldout_loss  # it did compute anew


@contextmanager
def command_line(
    store: Path, run: Path, *options: str, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The command line's pretraining, which Ctrl-C can reach; ended, with what it started, if the block fails."""
    settings = [part for setting in RUN_SETTINGS for part in ("--set", setting)]
    call = [COMMAND, "train", "pretrain", "--config", "tiny", "--store", store, "--run", run]
    process = subprocess.Popen(
        [*map(str, call), *settings, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", **(env or {})},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                for each in (*psutil.Process(process.pid).children(recursive=True), process):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()


@pytest.fixture(scope="module")
def stopped(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that SIGTERM ended."""
    files = RunFiles(tmp_path_factory.mktemp("stopped") / "run")
    with command_line(store, files.folder) as process:
        wait_until(lambda: steps_done(files) >= 2, lambda: process.poll() is None)
        process.terminate()
        errors = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 143
    step = steps_done(files)
    assert 2 <= step < RUN_STEPS
    assert errors.splitlines()[-1].endswith(f"was stopped, saved at step {step}: --resume continues it")
    assert checkpoint_files.step_of(checkpoint_files.listed(files.checkpoints)[0]) == step
    return files.folder


@pytest.fixture(scope="module")
def stopped_twice(stopped: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that SIGTERM ended, continued and then ended by Ctrl-C."""
    files = RunFiles(tmp_path_factory.mktemp("stopped_twice") / "run")
    shutil.copytree(stopped, files.folder)
    before = steps_done(files)
    with command_line(store, files.folder, "--resume") as process:
        wait_until(lambda: steps_done(files) > before, lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert checkpoint_files.step_of(checkpoint_files.listed(files.checkpoints)[0]) >= before
    return files.folder


def test_sigterm_saves_where_the_run_stands_and_ctrl_c_leaves_a_run_that_can_go_on(
    stopped_twice: Path, undisturbed: PretrainResult, store: Path
) -> None:
    """After SIGTERM with the next step; after Ctrl-C with the one after the last checkpoint, logged before or not."""
    files = RunFiles(stopped_twice)
    saved = checkpoint_files.listed(files.checkpoints)
    if checkpoint_files.step_of(saved[0]) == steps_done(
        files
    ):  # Ctrl-C came right after it: as if just before
        shutil.rmtree(saved.pop(0))
    saved_at = checkpoint_files.step_of(saved[0])
    logged = history.read(files.metrics)
    kept = [line for line in logged if line["step"] <= saved_at]
    reports: list[tuple[str, int, int]] = []
    resumed = pretrain(
        run_config(), store, files.folder, resume=True, progress=lambda *report: reports.append(report)
    )
    lines = history.read(resumed.history)
    assert lines[: len(kept)] == kept
    assert lines[len(kept) : len(logged)] != logged[len(kept) :]
    assert computed(resumed.history) == computed(undisturbed.history)
    assert resumed.heldout_loss == undisturbed.heldout_loss
    assert weights(resumed) == weights(undisturbed)
    assert reports[-1] == ("pretrain (steps)", RUN_STEPS, RUN_STEPS)


def test_a_run_that_another_process_trains_is_refused(stopped: Path, store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    written = (run / "config.yaml").read_text()
    with held(run), pytest.raises(TrainingError, match=rf"another process is training the run {run}: wait"):
        pretrain(run_config("max_steps=50"), store, run, resume=True)
    assert (run / "config.yaml").read_text() == written


def test_a_cluster_with_too_few_nodes_is_told(ray_local: None) -> None:
    few, elastic = (
        run_config("workers=64", "gradient_accumulation=1"),
        run_config("workers=64", "min_workers=1"),
    )
    assert missing_nodes(elastic, "cpu") is None
    sentence = missing_nodes(few, "cpu")
    assert sentence is not None
    assert sentence.endswith("CPUs left and the run needs 64: it waits for nodes")


def test_a_run_of_an_older_version_is_refused(stopped: Path, store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(stopped / "config.yaml", run)
    (run / "checkpoints" / "checkpoint_manager_snapshot.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"checkpoints of an earlier CellFoundry.*start another --run"):
        pretrain(run_config(), store, run, resume=True)


@pytest.mark.parametrize("min_workers", [None, 1])
def test_a_run_goes_on_after_nodes_are_lost(
    min_workers: int | None, undisturbed: PretrainResult, store: Path, tmp_path: Path
) -> None:
    """One node of three, whose rank moves to the spare one; or two, and an elastic run goes on with one rank."""
    files = RunFiles(tmp_path / "run")
    options = () if min_workers is None else ("--set", f"min_workers={min_workers}")
    with three_nodes() as nodes:
        env = {"RAY_ADDRESS": nodes.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
        with command_line(store, files.folder, *options, env=env) as process:
            wait_until(
                lambda: bool(checkpoint_files.listed(files.checkpoints)), lambda: process.poll() is None
            )
            for node in nodes.busy("RayTrainWorker")[:1] if min_workers is None else (1, 2):
                nodes.lose(node)
            errors = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0, errors
    ranks = 2 if min_workers is None else 1
    assert any(
        f"started again by itself on {ranks} ranks" in sentence for sentence in warnings(files.metrics)
    )
    ours, theirs = computed(files.metrics), computed(undisturbed.history)
    assert [line.get("cell_rows") for line in ours] == [line.get("cell_rows") for line in theirs]
    if min_workers is None:
        assert ours == theirs
    else:
        assert ours[-1]["heldout_loss"] == pytest.approx(theirs[-1]["heldout_loss"], rel=1e-5)
        assert ours != theirs
