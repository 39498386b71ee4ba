"""Where parts are computed: in this process, or by Ray actors."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from anndata import AnnData

from cellfoundry_data.joined_cells import Cells
from cellfoundry_data.ray_cluster import ray_cluster, usable_cpus
from cellfoundry_serving.encode import Source
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.parts.means import SumsCheckpoint
from cellfoundry_serving.parts.progress import PartProgress
from cellfoundry_serving.parts.reading import read_parts
from cellfoundry_serving.parts.task import (
    EmbedTask,
    EngineChoice,
    EngineFacts,
    Landing,
    RowsLanding,
    SumsLanding,
    compute_part,
)
from cellfoundry_serving.parts.work_folder import WorkFolder
from cellfoundry_serving.read_ahead import read_ahead


class Road(ABC):
    """A way to compute parts.

    Attributes:
        facts: of the engine that computes.
        why: where it computes, and why there.
    """

    facts: EngineFacts
    why: str

    @abstractmethod
    def run(
        self,
        task: EmbedTask,
        cells: Cells,
        missing: Sequence[int],
        work: WorkFolder,
        running: SumsCheckpoint | None,
        progress: PartProgress,
    ) -> None:
        """Compute and commit every part of ``missing`` (ascending); into ``running`` sums for means."""


class OneProcess(Road):
    """A thread reads ahead while the engine computes. No Ray, so a small source has no start to wait for."""

    def __init__(self, choice: EngineChoice, conventions: dict[str, Any], why: str) -> None:
        self._engine = choice.open()
        self.facts = EngineFacts.of(self._engine, conventions["output"], conventions["pool"])
        self.why = f"in one process ({why})"

    def run(
        self,
        task: EmbedTask,
        cells: Cells,
        missing: Sequence[int],
        work: WorkFolder,
        running: SumsCheckpoint | None,
        progress: PartProgress,
    ) -> None:
        """Compute the parts in their order."""
        landing: Landing
        if running is None:
            landing = RowsLanding(work, task.computing.plan)
        else:
            assert task.groups is not None
            landing = SumsLanding(running, task.groups)
        # Closed here and not by the garbage collector, where a second Ctrl-C would only be printed.
        with closing(read_ahead(read_parts(cells, task.computing.plan, missing))) as parts:
            for part, batch, totals in parts:
                progress.done(
                    compute_part(task.computing, self._engine, part, batch, totals, landing, progress.within)
                )


@contextmanager
def open_road(
    choice: EngineChoice,
    conventions: dict[str, Any],
    source: Source,
    workers: int | None,
    num_gpus: float | None,
) -> Iterator[Road]:
    """The road for ``workers`` actors; None is this process, or an actor for each GPU of RAY_ADDRESS's cluster.

    Raises:
        ServingError: workers for an AnnData in memory, or more than the cluster has room for.
        DataError: no cluster.
        ModelError, ServingError: see ``open_engine``.
    """
    in_memory = isinstance(source, AnnData)
    if in_memory and workers is not None:
        raise ServingError(
            "An AnnData in memory is embedded by this process; write it to a file for workers."
        )
    why = "the source is in memory" if in_memory else "no --workers are asked for"
    if workers is not None:
        check_machine_has_cpus(workers)
    if not in_memory and (workers is not None or os.environ.get("RAY_ADDRESS")):
        with ray_cluster(min_cpus=(workers or 0) + 1):
            from cellfoundry_serving.parts.ray_workers import RayRoad, cluster_gpus

            n_gpus = int(cluster_gpus())
            if workers is not None or n_gpus > 1:
                yield RayRoad(choice, conventions, workers, num_gpus)
                return
        why = f"the cluster of RAY_ADDRESS has {n_gpus or 'no'} GPU; --workers N uses it all the same"
    if num_gpus is not None:
        raise ServingError(
            "--num-gpus is of each Ray worker and there are none; add --workers N, or leave it out."
        )
    yield OneProcess(choice, conventions, why)


def check_machine_has_cpus(workers: int) -> None:
    """Raises ServingError where a Ray cluster of this machine alone would share its CPUs among too many models."""
    ray = sys.modules.get("ray")
    joins = os.environ.get("RAY_ADDRESS") or (ray is not None and ray.is_initialized())
    if not joins and workers > usable_cpus():
        raise ServingError(
            f"--workers {workers}: each worker computes on a CPU of its own and this machine has {usable_cpus()}; give "
            f"--workers {usable_cpus()} or fewer."
        )
