"""What a mapping found.

Legend: C cells of the mapping, D cells drawn to compare methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt

from cellfoundry_tasks.mapping.config import MapConfig
from cellfoundry_tasks.mapping.transfer import TransferScore

Floats = npt.NDArray[np.float32]
Names = npt.NDArray[np.str_]


@dataclass(frozen=True)
class MethodResult:
    """A way to represent and join the cells, and how it did on the cells drawn to compare.

    Attributes:
        name: as reports show it.
        kind: "model", "baseline" or "control" (random weights).
        scores: scib-metrics' numbers by their clean names; of a graph only those that it has.
        transfer: of labels, None where the query has none.
        seconds: that joining and scoring took, without the representation.
    """

    name: str
    kind: str
    scores: Mapping[str, float]
    transfer: TransferScore | None
    seconds: float


@dataclass(frozen=True)
class Layout:
    """A UMAP of the drawn cells, float32 (D, 2)."""

    name: str
    xy: Floats


@dataclass(frozen=True)
class MapResult:
    """A mapping.

    Attributes:
        config: its settings.
        cells: AnnData of all cells without counts: obs ``batch``, ``label`` and, of a query, ``transferred_label``
            and ``transferred_confidence``; obsm ``X_cellfoundry`` (the embedding), with features expression
            ``X_cellfoundry_expression`` (its components), and with Harmony ``X_cellfoundry_harmony`` (either, joined).
        method: name of the one that carried the labels over, among ``methods``.
        methods: all that were compared.
        drawn: rows of ``cells`` that were compared, ascending.
        layouts: UMAPs of these.
        confidence: (lower bound of the confidence, share of the judged cells at or above it, share of these that
            are right) by ``method``, empty where nothing can be judged.
        sources: names of the inputs.
        n_genes: genes of the joint matrix.
        left_out: what of the input is not among the cells, and of the model not among the methods.
        model: name, hash and what is known of its training.
    """

    config: MapConfig
    cells: ad.AnnData
    method: str
    methods: tuple[MethodResult, ...]
    drawn: npt.NDArray[np.int64]
    layouts: tuple[Layout, ...]
    confidence: tuple[tuple[float, float, float], ...]
    sources: tuple[str, ...]
    n_genes: int
    left_out: tuple[str, ...]
    two_files: bool
    model: Mapping[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> MethodResult:
        """The method of that name."""
        return next(method for method in self.methods if method.name == name)

    def __str__(self) -> str:
        mine = self.of(self.method)
        n_batches = self.cells.obs["batch"].nunique()
        found = f"{self.cells.n_obs:,} cells of {n_batches} batches, iLISI {mine.scores['iLISI']:.3f}"
        if "cLISI" in mine.scores:
            found += f", cLISI {mine.scores['cLISI']:.3f}"
        if mine.transfer:
            right, f1 = mine.transfer.accuracy.mean, mine.transfer.macro_f1.mean
            found += f"; labels carried over are right for {right:.1%} (macro-F1 {f1:.3f})"
        return found
