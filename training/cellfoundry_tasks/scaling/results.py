"""Finished runs of ``annotate`` and ``enhance`` as their ``result.json`` has them: nothing is computed twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cellfoundry_tasks.enhance.gene_errors import SCORES
from cellfoundry_tasks.enhance.gene_level import KNN, MAGIC, MODEL, SCVI
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.facts import RESULT_FILE
from cellfoundry_tasks.intervals import Interval

MOST_BYTES = 64 * 2**20
"""A result of a thousand seeds has a few MiB."""
MOST_CELLS = 10**12
ENHANCE_SCORES = ("mae", "mae_all", "mae_all_half", "rmse_all", "pcc_all")

Values = dict[tuple[str, str], Interval]
"""(score, way) -> mean and interval; a way is a row of annotate, a method of enhance."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where its result is.
        task: "annotate" or "enhance".
        source: name of the cells.
        same: settings and numbers of cells, which runs on one curve must share.
        training_cells: that its model learned from.
        cells_seen: that it saw, repeats counted; None where its directory does not say.
        parameters: of the model.
        layers: depth x width of encoder and decoder.
        values: of everyone.
        own: ways that are the model's say.
        strong: the baselines that a model has to be better than; the rest is trivial or has random weights.
    """

    folder: Path
    task: str
    source: str
    same: dict[str, Any]
    training_cells: int
    cells_seen: int | None
    parameters: int
    layers: tuple[str, str]
    values: Values
    own: tuple[str, ...]
    strong: tuple[str, ...]


def read_run(folder: Path) -> Run:
    """The result in a folder; TaskError where there is none that a curve can use."""
    path = folder / RESULT_FILE
    if not path.is_file():
        raise TaskError(
            f"{path}: there is no such file; give folders that task annotate or task enhance wrote"
        )
    if path.stat().st_size > MOST_BYTES:
        raise TaskError(f"{path}: is larger than {MOST_BYTES // 2**20} MiB, as no result of a task is")
    try:
        text = path.read_bytes()
        head = _Head.model_validate_json(text)
        found = (_Annotate if head.task == "annotate" else _Enhance).model_validate_json(text)
    except ValidationError:
        raise TaskError(
            f"{path}: is no result of task annotate or task enhance of this version; run the task again"
        ) from None
    model = head.model
    if model.training_cells is None:
        raise TaskError(
            f"{path}: its model does not say how many cells it learned from (training_cells in the info of its "
            "config.json, which pretraining writes)"
        )
    if model.encoder_tuned is not None:
        raise TaskError(
            f"{path}: its model's encoder was fine-tuned (tune {model.encoder_tuned}), so the cells of the pretraining "
            "are not all that it learned from; give results of models before fine-tuning"
        )
    return Run(
        folder=folder,
        task=head.task,
        source=head.source,
        same=head.config | found.cells_of_it(),
        training_cells=min(model.cells_seen or model.training_cells, model.training_cells),
        cells_seen=model.cells_seen,
        parameters=model.parameters,
        layers=(model.encoder, model.decoder),
        values=found.values(),
        own=found.own(),
        strong=found.strong(),
    )


def is_error(score: str) -> bool:
    """Whether lower is better."""
    return score.startswith(("MAE", "RMSE"))


class _Part(BaseModel):
    """Part of a result; what a curve does not need is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class _Model(_Part):
    training_cells: int | None = Field(None, ge=1, le=MOST_CELLS, strict=True)
    cells_seen: int | None = Field(None, ge=1, le=MOST_CELLS, strict=True)
    parameters: int = Field(ge=1, le=MOST_CELLS, strict=True)
    encoder: str
    decoder: str
    encoder_tuned: str | None = None


class _Head(_Part):
    task: Literal["annotate", "enhance"]
    source: str
    config: dict[str, Any]
    model: _Model


class _Score(_Part):
    mean: float
    low: float | None
    high: float | None
    splits: int

    @model_validator(mode="after")
    def _is_inside(self) -> _Score:
        if (self.low is None) != (self.high is None):
            raise ValueError("one end of an interval alone")
        if self.low is not None and self.high is not None and not self.low <= self.mean <= self.high:
            raise ValueError("a mean outside of its interval")
        return self

    def interval(self) -> Interval:
        return Interval(self.mean, self.low, self.high, self.splits)


class _Intervals(_Part):
    macro_f1: dict[str, _Score]


class _Row(_Part):
    name: str
    kind: str
    intervals: _Intervals


class _Annotate(_Part):
    classes: dict[str, int]
    heldout: int | None
    rows: list[_Row]

    def cells_of_it(self) -> dict[str, Any]:
        return {"labelled cells": self.classes, "held-out cells": self.heldout}

    def own(self) -> tuple[str, ...]:
        return self._of_kind("model")

    def strong(self) -> tuple[str, ...]:
        return self._of_kind("baseline")

    def _of_kind(self, kind: str) -> tuple[str, ...]:
        return tuple(row.name for row in self.rows if row.kind == kind)

    def values(self) -> Values:
        """Macro-F1 of every row at every shot; fine-tunings are left out, whose encoders learn the labels too."""
        return {
            (f"Macro-F1, {'all training cells' if shot == 'all' else f'{shot} cells a class'}", row.name): (
                score.interval()
            )
            for row in self.rows
            if row.kind != "tuned"
            for shot, score in row.intervals.macro_f1.items()
        }


class _MethodScore(_Part):
    over_cells: _Score


class _Method(_Part):
    depth: float
    method: str
    scores: dict[str, _MethodScore]

    @field_validator("scores", mode="before")
    @classmethod
    def _needed(cls, scores: Any) -> Any:
        """Those on curves; others have no interval over cells."""
        return (
            {key: scores[key] for key in ENHANCE_SCORES if key in scores}
            if isinstance(scores, dict)
            else scores
        )


class _Enhance(_Part):
    cells: int
    genes: int
    judged: int
    gene_level: list[_Method]

    def cells_of_it(self) -> dict[str, Any]:
        return {"cells of the source": self.cells, "shared genes": self.genes, "judged cells": self.judged}

    def own(self) -> tuple[str, ...]:
        return (MODEL,)

    def strong(self) -> tuple[str, ...]:
        ways = dict.fromkeys(_way(method) for method in self.gene_level)
        return tuple(way for way in ways if way in (MAGIC, SCVI) or way.startswith(KNN))

    def values(self) -> Values:
        """Everyone at every depth; of kNN smoothing by each mean the k that is best for each score."""
        found: Values = {}
        for method in self.gene_level:
            for key in ENHANCE_SCORES:
                if key not in method.scores:
                    continue  # a correlation that is not defined
                score = f"{SCORES[key]}, {100 * method.depth:g} % depth"
                value = method.scores[key].over_cells.interval()
                held = found.get((score, _way(method)))
                if held is None or (value.mean < held.mean if is_error(score) else value.mean > held.mean):
                    found[score, _way(method)] = value
        return found


def _way(method: _Method) -> str:
    """A method's name without the number of neighbours."""
    return method.method.partition(", k=")[0]
