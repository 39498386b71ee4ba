"""What the driver tells of a run while its ranks compute: progress, the newest numbers, warnings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cellfoundry_training import history
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.files import RunFiles
from cellfoundry_training.history import Record
from cellfoundry_training.schedule import budget_share

Progress = Callable[[str, int, int], None]
Watch = Callable[[Record], None]
PROGRESS_EVERY_S = 0.5
NODES_EVERY_S = 5.0


@contextmanager
def following(
    files: RunFiles, config: PretrainConfig, device: str, progress: Progress | None, watch: Watch | None
) -> Iterator[None]:
    """Report from the metrics file while the body runs, and when the cluster has too few nodes for the ranks."""
    finished = threading.Event()
    arguments = (files.metrics, config, device, progress or _ignore, watch or _ignore, finished)
    thread = threading.Thread(target=_follow, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _ignore(*_: object) -> None:
    """Nobody is looking."""


def _follow(
    metrics: Path,
    config: PretrainConfig,
    device: str,
    progress: Progress,
    watch: Watch,
    finished: threading.Event,
) -> None:
    label = "pretrain (steps)"
    before = history.newest(metrics)
    first = reported = before.step["step"] if before.step else 0
    evaluated = before.evaluation["step"] if before.evaluation else None
    warned = before.warnings
    looked, told = time.monotonic(), None
    while True:
        if reported == first:  # again and again while ranks start, which the rate of steps must not count
            progress(label, first, config.max_steps or 0)
        last_look = finished.wait(PROGRESS_EVERY_S)
        now = history.newest(metrics)
        for warning in now.warnings:
            if warning not in warned:
                watch(warning)
        warned = now.warnings
        if now.step is not None and now.step["step"] != reported:
            step = reported = now.step["step"]
            watch(now.step)
            # A budget of seconds says how many steps it holds by how far the ones so far have come.
            share = budget_share(config, step, now.step["seconds"])
            progress(label, step, max(step, round(step / share)))
        if now.evaluation is not None and now.evaluation["step"] != evaluated:
            evaluated = now.evaluation["step"]
            watch(now.evaluation)
        if last_look:
            return
        if time.monotonic() >= looked + NODES_EVERY_S:
            looked, missing = time.monotonic(), missing_nodes(config, device)
            if missing is not None and missing != told:
                watch({"step": reported, "warning": missing})
            told = missing


def missing_nodes(config: PretrainConfig, device: str) -> str | None:
    """A sentence where nodes were lost and the ranks no longer fit on the cluster, else None."""
    import ray

    resource = "GPU" if device == "cuda" else "CPU"
    there, needed = int(ray.cluster_resources().get(resource, 0)), config.min_workers or config.workers
    if there >= needed:
        return None
    return f"the cluster has {there} {resource}s left and the run needs {needed}: it waits for nodes"
