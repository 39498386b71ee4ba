"""What an annotation run is made of: one validated record with defaults for all but the label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)

from cellfoundry_tasks.errors import TaskError
from cellfoundry_training.settings import first_fault

MIN_CLASS_CELLS = 10
"""Labelled cells a class needs; one with fewer is left out, and the report says so."""

Shot: TypeAlias = Annotated[int, Field(ge=2)] | Literal["all"]
"""Cells a class; of one alone nothing could be held out to calibrate or to stop by."""
Features: TypeAlias = Literal["auto", "expression", "embedding", "both"]
Tune: TypeAlias = Literal["head", "last", "lora"]


class AnnotateConfig(BaseModel):
    """An annotation run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    """Obs column with the classes."""
    unlabelled: tuple[str, ...] = ()
    """Values of it that are no class, such as "unassigned"; an empty one never is."""
    heldout_column: str | None = None
    """Boolean obs column: exactly its true cells test, the others train; empty draws the test cells anew per seed."""
    test_share: float = Field(0.3, gt=0.0, le=0.8)
    """Share of each class's cells that tests, where no column names them."""
    shots: tuple[Shot, ...] = Field((5, 10, 50, "all"), min_length=1)
    """Labelled training cells of each class, in any order; reports begin with the fewest."""
    seeds: PositiveInt = 5
    """Splits, which the confidence intervals are over."""
    tune: tuple[Tune, ...] = ()
    """Fine-tunings to judge beside the probes, each anew for every split: of the head alone, of the last encoder layers
    and of adapters in all layers; slow."""
    last: PositiveInt = 2
    """Encoder layers that learn with tune last."""
    features: Features = "auto"
    """What the labels of new cells are predicted from; auto takes the best on the reference's own cells."""
    components: PositiveInt = 50
    """Principal components of expression, the model's and the counts' alike."""
    target: str = "t4"
    """Depth T that the model is asked for."""
    regularisation: PositiveFloat = 10.0
    """C of every logistic regression, the model's and the counts' alike: inverse strength of the L2 penalty, for
    features of total variance 1."""
    known_share: float = Field(0.95, gt=0.5, lt=1.0)
    """Share of held-out reference cells that the threshold of `unknown` keeps."""

    @field_validator("shots")
    @classmethod
    def _ascending(cls, value: tuple[Shot, ...]) -> tuple[Shot, ...]:
        return tuple(sorted(value, key=lambda shot: math.inf if shot == "all" else shot))

    @field_validator("shots", "tune")
    @classmethod
    def _once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each may stand there once")
        return value


def build_config(values: Mapping[str, Any]) -> AnnotateConfig:
    """Validate ``values``; TaskError names the field or key."""
    try:
        return AnnotateConfig.model_validate(dict(values))
    except ValidationError as error:
        raise TaskError(f"annotate: {first_fault(error)}") from None
