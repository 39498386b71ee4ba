"""The Ray cluster that a job runs on: the one this process uses already, or a local one for the time being."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Cells travel in files and stores; only reports and small blocks go through the object store.
OBJECT_STORE_BYTES = 300 * 2**20


@contextmanager
def ray_cluster(min_cpus: int = 1) -> Iterator[None]:
    """Use the connected cluster, or start a quiet local one and stop it at the end of the block.

    Args:
        min_cpus: CPUs that a local cluster offers at least, whatever the machine has.
    """
    # Ray would otherwise write a token into the home directory; a local cluster listens on loopback only.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        num_cpus=max(min_cpus, os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    try:
        yield
    finally:
        ray.shutdown()
