"""One part of an embedding, computed the same way by whoever computes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from socket import gethostname
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.encode import Source, count_empty, encoded
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.outputs.dispatch import open_rows
from cellfoundry_serving.parts.means import GroupSums, SumsCheckpoint, save_array
from cellfoundry_serving.parts.plan import PartPlan
from cellfoundry_serving.parts.work_folder import WorkFolder


@dataclass(frozen=True)
class EngineChoice:
    """Arguments of ``open_engine``."""

    model_dir: str
    engine: str
    precision: str
    provider: str | None = None

    def open(self) -> Engine:
        """The engine."""
        return open_engine(self.model_dir, self.engine, self.precision, self.provider)


@dataclass(frozen=True)
class EngineFacts:
    """What must be known of the engine before any cell is read.

    Attributes:
        name: "torch", "onnx" or "tensorrt".
        precision: of its arithmetic; two exports of a model may differ in nothing else.
        info: facts about the model.
        vocab_genes: gene names in position order.
        row_shape: shape of one cell's result.
    """

    name: str
    precision: str
    info: dict[str, Any]
    vocab_genes: tuple[str, ...]
    row_shape: tuple[int, ...]

    @classmethod
    def of(cls, engine: Engine, output: Any, pool: Any) -> EngineFacts:
        """Facts of an open engine; an error of its layer for an unknown output or pool."""
        return cls(engine.name, engine.precision, engine.info, engine.vocab_genes, engine.shape(output, pool))


@dataclass(frozen=True)
class Computing:
    """What turns the cells of a part into its results; small, because Ray keeps it for every actor.

    Attributes:
        engine: what computes.
        weights_sha256: of the model, which another machine's folder of the same name may not hold.
        conventions: keywords of ``Engine.encode``.
        genes: positions of the genes that are kept; None keeps all.
        row_shape: shape of what is kept of one cell.
        plan: the parts.
    """

    engine: EngineChoice
    weights_sha256: str
    conventions: dict[str, Any]
    genes: tuple[int, ...] | None
    row_shape: tuple[int, ...]
    plan: PartPlan

    def open(self) -> Engine:
        """The engine; ServingError where it has other weights than the embedding was begun with."""
        engine = self.engine.open()
        if engine.info["weights_sha256"] != self.weights_sha256:
            raise ServingError(
                f"{self.engine.model_dir} on {gethostname()} holds another model than where the embedding began; "
                "give all machines the same, and run the command again to continue."
            )
        return engine


@dataclass(frozen=True)
class EmbedTask:
    """All that deciding about a part takes.

    Attributes:
        key: another one for each embedding.
        source: where the cells come from.
        identities: of the sources, see ``request.source_identities``; None for an AnnData.
        layer: matrix of an AnnData to read.
        vocab_genes: the model's genes.
        groups: of each cell, (cells,), for means; None writes every cell.
        computing: from cells to results.
    """

    key: str
    source: Source
    identities: list[list[str]] | None
    layer: str | None
    vocab_genes: tuple[str, ...]
    groups: npt.NDArray[np.int64] | None
    computing: Computing


class Landing(ABC):
    """Where the results of parts go."""

    @abstractmethod
    def take(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Results of the cells from row ``first`` on; those of one part come in order."""

    @abstractmethod
    def commit(self, part: int, facts: dict[str, Any]) -> None:
        """All of a part has come."""


class RowsLanding(Landing):
    """Every cell's result into the array on disk."""

    def __init__(self, work: WorkFolder, plan: PartPlan) -> None:
        self._work, self._plan = work, plan
        self._rows = open_rows(work.rows, work.suffix)

    def take(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Writes the block."""
        self._rows.write(first, block)

    def commit(self, part: int, facts: dict[str, Any]) -> None:
        """The part's rows first, then that they are there."""
        self._rows.commit(*self._plan.rows(part))
        self._work.commit(part, facts)


class SumsLanding(Landing):
    """Results into the running sums of their groups, in the process that holds them."""

    def __init__(self, running: SumsCheckpoint, groups: npt.NDArray[np.int64]) -> None:
        self._running, self._groups = running, groups

    def take(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Adds the block."""
        self._running.sums.add(block, self._groups[first : first + len(block)])

    def commit(self, part: int, facts: dict[str, Any]) -> None:
        """Counts the part as done, and saves now and then."""
        self._running.commit(part, facts)


class PartSumsLanding(Landing):
    """Results into sums of the part's own groups, which wait on the disk for the process that holds the sums of all."""

    def __init__(self, work: WorkFolder, computing: Computing) -> None:
        self._work, self._computing = work, computing

    def begin(self, first: int, groups: npt.NDArray[np.int64]) -> None:
        """A part begins at row ``first``; ``groups`` of its cells."""
        present, places = np.unique(groups, return_inverse=True)
        missing = int(np.searchsorted(present, 0))  # group -1 comes first
        self._first, self._present, self._places = first, present[missing:], places - missing
        n_cells = self._computing.plan.n_cells
        self._sums = GroupSums(len(self._present), self._computing.row_shape, n_cells)

    def take(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Adds the block."""
        row = first - self._first
        self._sums.add(block, self._places[row : row + len(block)])

    def commit(self, part: int, facts: dict[str, Any]) -> None:
        """The part's sums first, then that they are there."""
        save_array(self._work.sums_of(part), self._sums.sums)
        sums = {"groups": self._present.tolist(), "counts": self._sums.counts.tolist()}
        self._work.commit(part, facts | {"sums": sums})


def compute_part(
    computing: Computing,
    engine: Engine,
    part: int,
    cells: CellBatch,
    totals: npt.NDArray[np.float64] | None,
    landing: Landing,
    tell: Callable[[int], None],
) -> dict[str, Any]:
    """Embed the cells of ``part`` and commit them; gives the part's facts. ``tell`` hears how many are through."""
    genes = None if computing.genes is None else list(computing.genes)
    first = int(cells.row_ids[0])
    for row, block in encoded(engine, cells, totals, computing.conventions):
        landing.take(row, block if genes is None else np.ascontiguousarray(block[:, genes]))
        tell(row + len(block) - first)
    facts = {"cells": len(cells), "empty": count_empty(cells), "engine": engine.why}
    landing.commit(part, facts)
    return facts
