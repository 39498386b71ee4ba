"""What every output format gets and does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

OBSM_KEY = "X_cellfoundry"
PROVENANCE_KEY = "cellfoundry"
"""Of attributes and schema metadata: what makes a file ours."""

Blocks: TypeAlias = Iterable[tuple[int, npt.NDArray[np.float32]]]
"""(first row, float32 rows) in order."""


@dataclass(frozen=True)
class OutputSpec:
    """One output to be written.

    Attributes:
        output: "cell", "gene" or "expression".
        shape: (cells, width), (cells, genes, width) or (cells, genes); of means, groups in place of cells.
        obs: the source's obs, indexed by cell name, (cells,) rows in the source's order; of means one row a group.
        genes: the gene axis of gene and expression outputs.
        provenance: model hash, conventions and the like, kept beside the numbers where the format can.
        source: what the cells came from; None for means, which keep nothing of it.
        rows: what a row is, "cells" or "groups".
    """

    output: str
    shape: tuple[int, ...]
    obs: pd.DataFrame
    genes: tuple[str, ...]
    provenance: dict[str, str]
    source: Any
    rows: str = "cells"


class RowsOnDisk(ABC):
    """A float32 array on disk that parts write their rows to, from several processes if need be."""

    @abstractmethod
    def write(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Rows ``first`` to ``first + len(block)``; those of one part come in order."""

    @abstractmethod
    def commit(self, start: int, stop: int) -> None:
        """Has rows [start, stop), a whole part, on the disk when it returns."""
