"""A rank that hangs ends the run, and the sentence names it."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest

from cellfoundry_training.config import load_config
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.files import RunFiles
from cellfoundry_training.hang_watch import Heartbeat, verdict
from cellfoundry_training.pretrain import pretrain

LIMIT_S = 10
NEVER = 10**9


def beat(collectives: int, phase: str = "backward", tick: int = 9) -> Heartbeat:
    return Heartbeat(tick, 7, collectives, phase, "pid 5 on node")


def test_the_rank_that_entered_fewer_collectives_is_named() -> None:
    sentence = verdict({0: beat(31), 1: beat(31), 2: beat(30, "data")}, set(), 3, 60)
    assert "because of rank 2 (pid 5 on node), which is behind in data after step 7" in sentence
    assert "collective_timeout_s (60 s)" in sentence


def test_a_silent_rank_is_named_wherever_it_stood() -> None:
    sentence = verdict({0: beat(31), 1: beat(31)}, {1, 2}, 3, 60)
    assert "rank 1 (pid 5 on node), which no longer responds in backward after step 7" in sentence
    assert "rank 2, which never began" in sentence


def test_ranks_that_all_wait_point_to_the_network() -> None:
    assert "check the network" in verdict({0: beat(31), 1: beat(31)}, set(), 2, 60)


def test_a_stopped_process_ends_the_run_with_its_rank(ray_local: None, store: Path, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    config = load_config(
        "tiny",
        [
            *("workers=2", "device=cpu", "batch_cells=2", "validation_share=0.2", "max_seconds=600"),
            *(
                f"collective_timeout_s={LIMIT_S}",
                "max_restarts=0",
                f"eval_every_steps={NEVER}",
                f"checkpoint_every_steps={NEVER}",
            ),
        ],
    )
    errors: list[BaseException] = []

    def train() -> None:
        try:
            pretrain(config, store, files.folder)
        except TrainingError as error:
            errors.append(error)

    run = threading.Thread(target=train)
    run.start()
    pid = None
    try:
        pid = stop_rank(files, 1, run)
        run.join()
    finally:
        if pid is not None and Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
    (error,) = errors
    assert re.search(rf"because of rank 1 \(pid {pid} on \S+\), which no longer responds in ", str(error))
    assert "\n" not in str(error)


def stop_rank(files: RunFiles, rank: int, run: threading.Thread) -> int:
    """Stop the process of ``rank`` once it takes steps; its pid."""
    heartbeat = files.heartbeats / f"rank_{rank}.json"
    while run.is_alive():
        run.join(0.2)
        if heartbeat.exists() and json.loads(heartbeat.read_text())["step"] > 0:
            pid = int(json.loads(heartbeat.read_text())["process"].split()[1])
            os.kill(pid, signal.SIGSTOP)
            return pid
    pytest.fail("the run ended before it took a step")
