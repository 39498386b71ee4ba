"""Settings of the read-depth enhancement task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cellfoundry_tasks.errors import TaskError
from cellfoundry_training.settings import first_fault


class EnhanceConfig(BaseModel):
    """What is judged, how often, and beside whom."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str | None = None
    """Obs column of the reference clusters; None for Leiden clusters of the full-depth cells."""
    heldout_column: str | None = None
    """Boolean obs column of the cells to judge, such as those that no training saw; None for all."""
    depths: tuple[float, ...] = Field((0.01, 0.05, 0.1, 0.2), min_length=1)
    """Shares of a cell's molecules that are kept."""
    cluster_depth: float = 0.1
    """Share of molecules of the cells that are clustered."""
    seeds: int = Field(3, ge=1)
    """Times that every depth is drawn, with seeds 0, 1, ..."""
    cells: int = Field(500, ge=2)
    """Judged cells of the gene level, drawn at random where there are more; neighbours, MAGIC and scVI have all."""
    clustered_cells: int = Field(2000, ge=10)
    """Clustered cells, drawn at random where there are more."""
    scvi_epochs: int = Field(60, ge=0)
    """Epochs of scVI, which is trained once a depth, with the first seed; 0 leaves it out."""

    @field_validator("depths", "cluster_depth")
    @classmethod
    def _within(cls, value: Any) -> Any:
        for depth in value if isinstance(value, tuple) else (value,):
            if not 0 < depth < 1:
                raise ValueError(f"depth {depth:g} is not between 0 and 1, as the share of molecules kept")
        return value

    @field_validator("depths")
    @classmethod
    def _distinct(cls, depths: tuple[float, ...]) -> tuple[float, ...]:
        for depth in depths:
            if depths.count(depth) > 1:
                raise ValueError(
                    f"depth {depth:g} is given {depths.count(depth)} times; give each depth once"
                )
        return depths


def enhance_config(settings: Mapping[str, Any]) -> EnhanceConfig:
    """The settings, checked; TaskError names the first wrong or unknown one."""
    try:
        return EnhanceConfig.model_validate(settings)
    except ValidationError as error:
        raise TaskError(f"enhance: {first_fault(error)}") from None
