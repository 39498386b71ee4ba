"""Running one function over many items as a Ray Data job that prints nothing of its own."""

from __future__ import annotations

import errno
import json
import logging
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.process_memory import settle_worker

TELL_EVERY_S = 2.0
"""A message costs the driver some 5 ms."""


WORKER_RETRIES = 3
"""Of a part or shard whose worker died; Ray Data would try for ever."""


class Step(NamedTuple):
    """How far a task is: what its function has yielded last, and whether the function has returned."""

    item: int
    done: int
    finished: bool


class DiskFullError(DataError):
    """A task found no space on the disk."""


def run_items(function: Callable[[Any], Iterable[int]], items: Sequence[Any]) -> Iterator[Step]:
    """Run ``function`` over each item in a task of its own; yield how far each task is, as messages come.

    ``function`` yields how much of its item is done so far, and leaves what it makes in files.

    Raises:
        DataError: the first one that a task raised, or a disk or memory error of a task, as one sentence.
    """
    if not items:
        return
    import ray

    def run(row: dict[str, Any]) -> Iterator[dict[str, str]]:
        settle_worker()
        item, done, told = row["item"], 0, time.monotonic()
        try:
            for done in function(items[item]):
                if time.monotonic() - told >= TELL_EVERY_S:
                    told = time.monotonic()
                    yield {"json": json.dumps({"step": Step(item, done, finished=False)})}
            yield {"json": json.dumps({"step": Step(item, done, finished=True)})}
        except (DataError, OSError, MemoryError) as error:
            yield {
                "json": json.dumps({"error": str(error) or type(error).__name__, "full": is_disk_full(error)})
            }

    rows = [{"item": index} for index in range(len(items))]
    with warnings.catch_warnings():
        # Ray 2.60 deprecates these arguments and has no others that bound the retries.
        warnings.simplefilter("ignore", DeprecationWarning)
        tasks = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(
            run, max_retries=WORKER_RETRIES
        )
    try:
        with closing(_rows(tasks)) as messages:
            for message in messages:
                answer = json.loads(message["json"])
                if "error" in answer:
                    raise (DiskFullError if answer["full"] else DataError)(answer["error"])
                yield Step(*answer["step"])
    except ray.exceptions.RayTaskError:
        raise  # a defect of ours, not of the machine
    except ray.exceptions.RayError as error:
        raise DataError(
            f"a Ray worker died ({type(error).__name__}): most often the machine ran out of memory; run the same "
            "command again to continue, with fewer --cpus where it recurs."
        ) from error


def _rows(tasks: Any) -> Generator[dict[str, Any]]:
    yield from tasks.iter_rows()


def is_disk_full(error: BaseException) -> bool:
    """Arrow and Zarr give the reason as text only, NumPy gives the bytes it could not write."""
    known = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return known or any(text in str(error) for text in ("No space left", "requested and"))


@contextmanager
def silent_ray_data() -> Iterator[None]:
    """No bars and no log lines of Ray Data's own, and messages that come when a task yields them.

    The settings of before come back after the block.
    """
    from ray.data import DataContext

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first use builds the context, which warns of its own old fields
        context = DataContext.get_current()
    log = logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.target_max_block_size, log.level
    # Ray Data hands rows on when a block is full: with blocks of a byte, at once.
    context.enable_progress_bars, context.target_max_block_size = False, 1
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.target_max_block_size = before[:2]
        log.setLevel(before[2])
