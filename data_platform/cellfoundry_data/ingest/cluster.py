"""Running one function over many items as a Ray Data job, on the caller's cluster or a local one."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cellfoundry_data.errors import DataError

OBJECT_STORE_BYTES = 200 * 2**20
"""Only reports travel through the object store; cells go from task to task in files."""


@contextmanager
def ray_cluster() -> Iterator[None]:
    """The cluster this process already uses, or a local one until the block ends; Ray Data stays silent."""
    # Ray would otherwise write a token into the home directory; a local cluster listens on loopback only.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    started_here = not ray.is_initialized()
    if started_here:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    try:
        with _silent_ray_data():
            yield
    finally:
        if started_here:
            ray.shutdown()


def map_items(function: Callable[[Any], dict[str, Any]], items: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Apply ``function`` to each item in a task of its own; yield the results (JSON values) as they come.

    Raises:
        DataError: the first one that a task raised, or a disk or memory error of a task, as one sentence.
    """
    import ray

    def run(row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"json": json.dumps({"result": function(items[row["item"]])})}
        except (DataError, OSError, MemoryError) as error:
            return {"json": json.dumps({"error": str(error) or type(error).__name__})}

    rows = [{"item": index} for index in range(len(items))]
    for row in ray.data.from_items(rows, override_num_blocks=len(rows)).map(run).iter_rows():
        answer = json.loads(row["json"])
        if "error" in answer:
            raise DataError(answer["error"])
        yield answer["result"]


@contextmanager
def _silent_ray_data() -> Iterator[None]:
    """No bars and no log lines of Ray Data's own: the caller shows progress. Both settings come back after."""
    from ray.data import DataContext

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first use builds the context, which warns of its own old fields
        context = DataContext.get_current()
    log = logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        log.setLevel(level)
