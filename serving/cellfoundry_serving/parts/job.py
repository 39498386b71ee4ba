"""An embedding from laying out its work folder to its output, whatever of that is done already."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cellfoundry_data.joined_cells import Cells
from cellfoundry_data.store.replace import remove
from cellfoundry_serving.encode import Progress
from cellfoundry_serving.outputs.base import OutputSpec
from cellfoundry_serving.outputs.dispatch import (
    ANY_ORDER,
    create_rows,
    finish_in_place,
    waiting_blocks,
    write_array,
    write_in_order,
)
from cellfoundry_serving.parts.disk_space import needed_bytes, require_space, telling_a_full_disk
from cellfoundry_serving.parts.means import GroupSums, SumsCheckpoint, check_sums_fit
from cellfoundry_serving.parts.progress import PartProgress
from cellfoundry_serving.parts.request import check_same, check_unchanged
from cellfoundry_serving.parts.roads import Road
from cellfoundry_serving.parts.task import EmbedTask
from cellfoundry_serving.parts.work_folder import WorkFolder


@dataclass(frozen=True)
class EmbedJob:
    """What is to be made, and by whom.

    Attributes:
        task: the parts.
        road: computes them.
        cells: the source.
        groups: names of the groups of means; None writes every cell.
        request: what decides the numbers; a work folder of another request is not used.
        progress: see ``embed``.
    """

    task: EmbedTask
    road: Road
    cells: Cells
    groups: Sequence[str] | None
    request: dict[str, Any]
    progress: Progress | None

    def prepare(self, work: WorkFolder, *, fresh: bool) -> None:
        """Keep what is there of this request, and clear the folder of what is of no use.

        Raises:
            ServingError: what is there is of another request and ``fresh`` is not set.
        """
        begun = None if fresh else work.request
        if begun is None or self._is_of_no_use(work, begun):
            work.clear()
        else:
            check_same(begun, self.request, work.out)

    def _is_of_no_use(self, work: WorkFolder, begun: dict[str, Any]) -> bool:
        over = work.is_taken_away or (work.is_published and begun != self.request)
        return over or not work.has_progress

    def go_on(self, work: WorkFolder) -> PartProgress:
        """Do what is missing, and put the output in its place.

        Raises:
            ServingError: the disk is too small, or a source has changed.
        """
        with telling_a_full_disk(work.out):
            progress, running = self._go_on(work)
        if running is not None:
            progress.averaged = int(running.sums.counts.sum())
        return progress

    def _go_on(self, work: WorkFolder) -> tuple[PartProgress, SumsCheckpoint | None]:
        if work.request is None:
            self._lay_out(work)
        if self.groups is not None:
            check_sums_fit(len(self.groups), self.task.computing.row_shape)
            sums = GroupSums(
                len(self.groups), self.task.computing.row_shape, self.task.computing.plan.n_cells
            )
            running = SumsCheckpoint(work, sums)
            done = running.parts
        else:
            running, done = None, work.committed()
        progress = PartProgress(self.task.computing.plan.n_cells, done.values(), self.progress)
        if work.is_finished:
            work.finish_publishing()
            return progress, running
        missing = [part for part in range(self.task.computing.plan.n_parts) if part not in done]
        self.road.run(self.task, self.cells, missing, work, running, progress)
        check_unchanged(self.task.source, self.task.identities, stores=False)
        self._finish(work, running, progress)
        work.publish()
        return progress, running

    def _lay_out(self, work: WorkFolder) -> None:
        plan = self.task.computing.plan
        work.lay_out()
        if self.groups is None:
            shape = (plan.n_cells, *self.task.computing.row_shape)
            # Of expression an .h5ad has nothing of its source.
            source = self.task.source if self.request["output"] == "cell" else None
            require_space(work, needed_bytes(work.suffix, 4 * math.prod(shape), source))
            create_rows(work.rows, work.suffix, shape, plan.chunk_cells)
        work.begin(self.request)

    def _finish(self, work: WorkFolder, running: SumsCheckpoint | None, progress: PartProgress) -> None:
        if running is None or self.groups is None:
            obs, source, rows, n_rows = (
                self.cells.obs,
                self.task.source,
                "cells",
                self.task.computing.plan.n_cells,
            )
        else:
            running.save()
            counts = running.sums.counts
            obs = pd.DataFrame({"n_cells": counts}, index=list(self.groups))
            source, rows, n_rows = None, "groups", len(counts)
        spec = OutputSpec(
            self.request["output"],
            (n_rows, *self.task.computing.row_shape),
            obs,
            self._genes(),
            self._provenance(progress),
            source,
            rows,
        )
        if running is None and work.suffix in ANY_ORDER:
            finish_in_place(work.output, work.suffix, spec)
            return
        unfinished = work.inside / "unfinished"
        remove(unfinished)
        if running is not None:
            write_array(unfinished, work.suffix, spec, running.sums.means())
        else:
            blocks = waiting_blocks(work.rows)
            write_in_order(unfinished, work.suffix, spec, blocks, shards=self.request["shards"])
        remove(work.output)
        unfinished.rename(work.output)

    def _genes(self) -> tuple[str, ...]:
        genes = self.task.vocab_genes
        return (
            genes
            if self.task.computing.genes is None
            else tuple(genes[position] for position in self.task.computing.genes)
        )

    def _provenance(self, progress: PartProgress) -> dict[str, str]:
        info = self.road.facts.info
        return (
            {name: str(value) for name, value in self.task.computing.conventions.items()}
            | {
                "engine": " and ".join(progress.engines),
                "model_sha256": str(info["weights_sha256"]),
                "vocabulary_sha256": str(info["vocabulary_sha256"]),
                "cellfoundry": str(self.request["version"]),
            }
            | ({"mean_by": str(self.request["mean_by"])} if self.groups is not None else {})
        )
