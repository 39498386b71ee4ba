"""Parts by Ray Data: tasks on CPUs read cells, actors with a model each embed and commit them.

Only part numbers travel through the driver; cells go from reader to actor through the object store, results to the
disk. A worker that dies is started again and does its part again, to the same numbers; it is committed once.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import ray

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.jobs import WORKER_RETRIES, silent_ray_data
from cellfoundry_data.joined_cells import Cells
from cellfoundry_model.errors import ModelError
from cellfoundry_serving.encode import open_for
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.parts.disk_space import telling_a_full_disk
from cellfoundry_serving.parts.means import SumsCheckpoint
from cellfoundry_serving.parts.plan import runs
from cellfoundry_serving.parts.progress import PartProgress
from cellfoundry_serving.parts.reading import read_parts
from cellfoundry_serving.parts.request import check_unchanged
from cellfoundry_serving.parts.roads import Road
from cellfoundry_serving.parts.task import (
    Computing,
    EmbedTask,
    EngineChoice,
    EngineFacts,
    PartSumsLanding,
    RowsLanding,
    compute_part,
)
from cellfoundry_serving.parts.work_folder import WorkFolder

USER_ERRORS = {error.__name__: error for error in (DataError, ModelError, ServingError)}
NO_CELLS = {
    "indptr": np.zeros(1, np.int64),
    "gene_ids": np.zeros(0, np.int32),
    "counts": np.zeros(0, np.float32),
    "row_ids": np.zeros(0, np.int64),
    "totals": np.zeros(0, np.float64),
    "groups": np.zeros(0, np.int64),
}


def cluster_gpus() -> float:
    """GPUs of the connected cluster."""
    return float(ray.cluster_resources().get("GPU", 0))


class RayRoad(Road):
    """Actors of one CPU each and, where the cluster has GPUs, one GPU; one more CPU reads.

    Args:
        choice: the engine of each actor.
        conventions: decide the shape of the results.
        workers: actors; None is one for each GPU.
        num_gpus: of each actor; None is one where the cluster has some.
    """

    def __init__(
        self, choice: EngineChoice, conventions: dict[str, Any], workers: int | None, num_gpus: float | None
    ) -> None:
        gpus, cpus = cluster_gpus(), int(ray.cluster_resources().get("CPU", 0))
        self._gpus = (1.0 if gpus else 0.0) if num_gpus is None else num_gpus
        self._workers = int(gpus) if workers is None else workers
        if self._workers + 1 > cpus:
            raise ServingError(
                f"{self._workers} worker{'s' * (self._workers > 1)} and the one CPU that reads need "
                f"{self._workers + 1} CPUs and the cluster has {cpus}; "
                + (
                    f"give --workers {cpus - 1}."
                    if cpus > 1
                    else "leave --workers out, on a machine of your own."
                )
            )
        if self._workers * self._gpus > gpus:
            raise ServingError(self._too_few_gpus(gpus))
        # Where the engine runs, and not here: the driver's machine may have no GPU.
        of_engine = ray.remote(_facts).options(num_cpus=1, num_gpus=self._gpus)
        try:
            self.facts = ray.get(of_engine.remote(choice, conventions["output"], conventions["pool"]))
        except ray.exceptions.RayTaskError as error:
            cause: BaseException = error.cause
            if isinstance(cause, tuple(USER_ERRORS.values())):
                raise cause from None
            raise
        asked = "--workers" if workers is not None else "the cluster of RAY_ADDRESS has several GPUs"
        each = f"{self._gpus:g} GPU each" if self._gpus else "a CPU each"
        self.why = f"by {self._workers} Ray worker{'s' * (self._workers > 1)} of {each} ({asked})"

    def _too_few_gpus(self, gpus: float) -> str:
        if not gpus:
            return (
                f"--num-gpus {self._gpus:g}: the cluster has no GPU; leave --num-gpus out to compute on CPUs."
            )
        fitting = int(gpus // self._gpus)
        advice = f"--workers {fitting}" if fitting else f"--num-gpus {gpus:g} or less"
        return (
            f"{self._workers} worker{'s' * (self._workers > 1)} of {self._gpus:g} GPUs each need more than the "
            f"{gpus:g} of the cluster; give {advice}."
        )

    def run(
        self,
        task: EmbedTask,
        cells: Cells,
        missing: Sequence[int],
        work: WorkFolder,
        running: SumsCheckpoint | None,
        progress: PartProgress,
    ) -> None:
        """Compute the parts in any order."""
        if cells.row_access:
            items = [(part, part + 1) for part in missing]
        else:  # to start in the middle costs a scan of the source
            items = [(run.start, run.stop) for run in runs(missing)]
        with silent_ray_data():
            # A worker that died again and again is told in a sentence; Ray Data would print its traces before.
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            for answer in self._answers(task, items, work):
                if "error" in answer:
                    raise USER_ERRORS.get(answer["kind"], ServingError)(answer["error"])
                facts = answer["facts"]
                if running is not None:
                    running.fold(answer["part"], work.facts_of(answer["part"]))
                progress.done(facts)

    def _answers(
        self, task: EmbedTask, items: list[tuple[int, int]], work: WorkFolder
    ) -> Iterator[dict[str, Any]]:
        def read(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
            yield from _read(task, range(row["first"], row["stop"]))

        rows = [{"first": first, "stop": stop} for first, stop in items]
        with warnings.catch_warnings():
            # Ray 2.60 deprecates these arguments and has no others that bound the retries.
            warnings.simplefilter("ignore", DeprecationWarning)
            parts = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(
                read, num_cpus=1, max_retries=WORKER_RETRIES
            )
            answers = parts.map_batches(
                EmbedActor,
                batch_size=1,
                batch_format="numpy",
                compute=ray.data.ActorPoolStrategy(size=self._workers, max_tasks_in_flight_per_actor=2),
                fn_constructor_args=(task.computing, work, task.groups is not None),
                num_cpus=1,
                num_gpus=self._gpus,
                max_restarts=-1,
                max_task_retries=WORKER_RETRIES,
            )
        try:
            with closing(_rows(answers)) as messages:
                for message in messages:
                    yield json.loads(message["json"])
        except ray.exceptions.RayTaskError:
            raise  # a defect of ours, not of the machine
        except ray.exceptions.RayError as error:
            raise ServingError(
                f"a Ray worker died again and again ({type(error).__name__}): most often its machine ran out of "
                "memory; run the same command again to continue, with fewer --workers where it recurs."
            ) from error


class EmbedActor:
    """One model; embeds the parts that come."""

    def __init__(self, computing: Computing, work: WorkFolder, means: bool) -> None:
        self._computing, self._out = computing, work.out
        self._engine: Engine | None = None
        self._landing = PartSumsLanding(work, computing) if means else RowsLanding(work, computing.plan)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """The answer for a part: its facts, or the error of a user."""
        row = {name: values[0] for name, values in rows.items()}
        answer: dict[str, Any] = {"part": int(row["part"])}
        if row["error"]:
            answer |= {"kind": row["kind"], "error": row["error"]}
        else:
            cells = CellBatch(row["indptr"], row["gene_ids"], row["counts"], row["row_ids"])
            totals = row["totals"] if len(row["totals"]) else None
            if isinstance(self._landing, PartSumsLanding):
                self._landing.begin(int(cells.row_ids[0]), row["groups"])
            try:
                if self._engine is None:  # here, where an error is told in its own sentence
                    self._engine = self._computing.open()
                with telling_a_full_disk(self._out):
                    answer["facts"] = compute_part(
                        self._computing,
                        self._engine,
                        answer["part"],
                        cells,
                        totals,
                        self._landing,
                        lambda _: None,
                    )
            except (*USER_ERRORS.values(), OSError, MemoryError) as error:
                answer |= {"kind": type(error).__name__, "error": str(error) or type(error).__name__}
        return {"json": [json.dumps(answer)]}


def _read(task: EmbedTask, parts: range) -> Iterator[dict[str, Any]]:
    try:
        plan = task.computing.plan
        for part, cells, totals in read_parts(_cells_of(task), plan, parts):
            start, stop = plan.rows(part)
            yield {
                "part": part,
                "indptr": cells.indptr,
                "gene_ids": cells.gene_ids,
                "counts": cells.counts,
                "row_ids": cells.row_ids,
                "totals": NO_CELLS["totals"] if totals is None else totals,
                "groups": NO_CELLS["groups"] if task.groups is None else task.groups[start:stop],
                "kind": "",
                "error": "",
            }
    except (*USER_ERRORS.values(), OSError, MemoryError) as error:
        text = str(error) or type(error).__name__
        yield {"part": parts[0], **NO_CELLS, "kind": type(error).__name__, "error": text}


_opened: dict[str, Cells] = {}  # of a worker process: the source of the embedding that it read for last


def _cells_of(task: EmbedTask) -> Cells:
    if task.key not in _opened:
        _opened.clear()
        cells = open_for(task.computing.conventions, task.source, task.vocab_genes, task.layer)
        check_unchanged(task.source, task.identities, stores=True)
        _opened[task.key] = cells
    return _opened[task.key]


def _facts(choice: EngineChoice, output: str, pool: str) -> EngineFacts:
    return EngineFacts.of(choice.open(), output, pool)


def _rows(answers: Any) -> Generator[dict[str, Any]]:
    yield from answers.iter_rows()
