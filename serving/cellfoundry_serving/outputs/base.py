"""What every output format gets and does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

OBSM_KEY = "X_cellfoundry"


@dataclass(frozen=True)
class OutputSpec:
    """One output to be written.

    Attributes:
        output: "cell", "gene" or "expression".
        shape: (cells, width), (cells, genes, width) or (cells, genes).
        obs: the source's obs, indexed by cell name, (cells,) rows in the source's order.
        genes: the model's vocabulary; the gene axis of gene and expression outputs.
        provenance: model hash, conventions and the like, kept beside the numbers where the format can.
        source: path or AnnData that the cells came from.
    """

    output: str
    shape: tuple[int, ...]
    obs: pd.DataFrame
    genes: tuple[str, ...]
    provenance: dict[str, str]
    source: Any


class EmbeddingWriter(ABC):
    """Takes rows in the source's order, block by block, into a temporary path; the caller renames it.

    A writer holds one block in memory at a time.
    """

    def __init__(self, path: Path, spec: OutputSpec) -> None:
        self.path = path
        self.spec = spec

    @abstractmethod
    def write(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Rows ``first`` to ``first + len(block)``; blocks come in order."""

    @abstractmethod
    def close(self) -> None:
        """Flushes and closes; called once, after the last block or after a failure."""
