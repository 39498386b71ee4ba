"""The Ray cluster that a job runs on: the one this process uses already, the one that RAY_ADDRESS names (Ray sets
it inside a submitted job), or a local one for the time being.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cellfoundry_data.errors import DataError

# Cells travel in files and stores; only reports and small blocks go through the object store.
OBJECT_STORE_BYTES = 300 * 2**20


@contextmanager
def ray_cluster(min_cpus: int = 1, cpus: int | None = None) -> Iterator[None]:
    """Use the connected cluster or that of RAY_ADDRESS, or start a quiet local one; what was started or connected
    here is stopped or disconnected at the end of the block.

    Args:
        min_cpus: CPUs that a local cluster offers at least, whatever the machine has.
        cpus: CPUs of a local cluster; None is as many as this process may use.

    Raises:
        DataError: RAY_ADDRESS names no cluster that answers, or no local cluster could be started, twice.
    """
    # Ray would otherwise write a token into the home directory; a local cluster listens on loopback only.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would otherwise replace Python's print once it shows a line, and numba cannot compile what prints with Ray's.
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    if address := os.environ.get("RAY_ADDRESS"):
        _connect(address)
    else:
        cpus = max(min_cpus, cpus or usable_cpus())
        try:
            _start(cpus)
        except DataError:
            _start(cpus)  # a start that timed out on a busy machine succeeds the second time
    try:
        yield
    finally:
        ray.shutdown()


def usable_cpus() -> int:
    """CPUs that this process may use, which a scheduler may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _connect(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # Ray raises whatever its parts raise
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"the Ray cluster of RAY_ADDRESS={address} cannot be used ({reason}): start it, or unset RAY_ADDRESS to "
            "run on this machine."
        ) from error


def _start(cpus: int) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except Exception as error:  # Ray raises whatever its parts raise
        ray.shutdown()
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"a local Ray cluster did not start ({reason}): check that the machine has 1 GB of free memory, room in "
            "/dev/shm and in the temporary folder (RAY_TMPDIR names another), and that 127.0.0.1 is reachable."
        ) from error
