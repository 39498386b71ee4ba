"""What is asked of a model, and the embeddings that it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfoundry_serving.errors import ServingError


@dataclass(frozen=True)
class Asked:
    """Options of one call.

    Attributes:
        model: by name; None is the endpoint's first.
        version: of the model; None is the one that the endpoint chooses.
        pool: "all" or "max".
        target: depth T asked for.
    """

    model: str | None = None
    version: str | None = None
    pool: str = "all"
    target: str = "t4"

    @property
    def conventions(self) -> dict[str, str]:
        """What the model is asked to compute."""
        return {"pool": self.pool, "target": self.target}

    @property
    def choice(self) -> dict[str, str]:
        """Which model, as a query: what was not asked for is left to the endpoint."""
        chosen = {"model": self.model, "version": self.version}
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True)
class Rows:
    """Embeddings of one request.

    Attributes:
        embedding: float32, (cells, width).
        version: of the model that computed them.
    """

    embedding: npt.NDArray[np.float32]
    version: str


def of_cells(rows: Rows, cells: int) -> Rows:
    """The same; ValueError unless there is one for each cell."""
    if rows.embedding.ndim != 2 or len(rows.embedding) != cells:
        raise ValueError(f"an array of shape {rows.embedding.shape} for {cells} cells")
    return rows


def joined(parts: Sequence[Rows]) -> npt.NDArray[np.float32]:
    """The embeddings of all requests, in their order; ServingError where there is none."""
    if not parts:
        raise ServingError("There are no cells to embed.")
    return np.concatenate([part.embedding for part in parts])
