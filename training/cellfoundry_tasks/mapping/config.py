"""Settings of a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from cellfoundry_tasks.errors import TaskError
from cellfoundry_training.settings import first_fault, nearest


class MapConfig(BaseModel):
    """What a mapping does beside its cells and its model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    """Obs column of the labels."""
    batch: str | None = None
    """Obs column of the batches of one file; none where a reference and a query are two files."""
    features: Literal["embedding", "expression"] = "embedding"
    """What of the model is joined and carries the labels: its embedding, or its expression at depth T."""
    method: Literal["harmony", "bbknn"] = "harmony"
    """How its batches are joined where labels are carried over and for the UMAP."""
    target: str = "t4.5"
    """Depth T asked of the model for all cells; 4.5 is that of the published mapping."""
    neighbors: PositiveInt = 15
    """Reference cells that vote on the label of a query cell."""
    unlabelled: tuple[str, ...] = ()
    """Labels that mean none."""
    compared_cells: int = Field(4000, ge=100)
    """At most so many cells, drawn by batch and seed, are used to compare methods."""
    seed: NonNegativeInt = 0
    """Of the drawn cells, the random weights, and the libraries' random starts."""


def build_config(values: Mapping[str, Any]) -> MapConfig:
    """Validate ``values``; TaskError names the setting."""
    for key in values:
        if key not in MapConfig.model_fields:
            raise TaskError(f"map: unknown setting {key!r}{nearest(key, MapConfig.model_fields)}")
    try:
        return MapConfig.model_validate(values)
    except ValidationError as error:
        raise TaskError(f"map: {first_fault(error)}") from None
