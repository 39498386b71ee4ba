"""Running one function over many items as a Ray Data job that prints nothing of its own."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cellfoundry_data.errors import DataError


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
def silent_ray_data() -> Iterator[None]:
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
