"""An export is worth something only if it computes what torch computes: the comparison, and the bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.embedder import Output
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError

Progress = Callable[[str, int, int], None]  # label, done, total

CHECKED_CELL_GENES = (1, 2, 17, 60, 200, 700, 1500)
# The decoder runs over every gene of a cell, which takes seconds at the published size.
DECODED_CELL_GENES = (1, 700)


@dataclass(frozen=True)
class Bar:
    """What an export must keep: ``max_error`` is absolute, but relative where numbers exceed 1."""

    max_error: float
    min_cosine: float


BARS = {
    "fp32": Bar(max_error=1e-5, min_cosine=0.99999),
    "fp16": Bar(max_error=math.inf, min_cosine=0.9999),
    "bf16": Bar(max_error=math.inf, min_cosine=0.9999),
    "int8": Bar(max_error=math.inf, min_cosine=0.999),
}


@dataclass(frozen=True)
class Comparison:
    """How far two engines are apart on the same cells.

    Attributes:
        output: "cell", "gene" or "expression".
        cells: cells compared, of very different lengths.
        max_error: largest absolute difference of any number.
        scale: largest absolute number.
        min_cosine: smallest cosine between two vectors: a cell's embeddings, a gene's in one cell, a cell's expression.
    """

    output: str
    cells: int
    max_error: float
    scale: float
    min_cosine: float

    def passes(self, bar: Bar) -> bool:
        """True where both parts of the bar hold; NaN fails."""
        return self.max_error <= bar.max_error * max(1.0, self.scale) and self.min_cosine >= bar.min_cosine

    def summary(self) -> str:
        """One phrase for people."""
        return (
            f"{self.output}: max error {self.max_error:.1e}, cosine at least {self.min_cosine:.7f} "
            f"({self.cells} cells)"
        )


def check_against(
    reference: Engine, engine: Engine, bar: Bar, batches: Mapping[Output, CellBatch], progress: Progress
) -> list[Comparison]:
    """Comparisons with ``reference``, one an output; ServingError where one misses ``bar``."""
    comparisons = compare_engines(reference, engine, batches, progress)
    check(comparisons, bar)
    return comparisons


def check(comparisons: list[Comparison], bar: Bar) -> None:
    """Raises ServingError where a comparison misses ``bar``."""
    for comparison in comparisons:
        if not comparison.passes(bar):
            raise ServingError(
                f"The export was discarded: it is far from torch ({comparison.summary()}); take another precision, "
                "and if that is the most precise one, please report it with the model's config.json."
            )


def compare_engines(
    reference: Engine, engine: Engine, batches: Mapping[Output, CellBatch], progress: Progress
) -> list[Comparison]:
    """Compares two engines on a batch of cells for each output; of poolings "all", which holds every number."""
    comparisons: list[Comparison] = []
    for output, batch in batches.items():
        progress("compare with torch", len(comparisons), len(batches))
        expected, got = reference.encode(batch, output=output), engine.encode(batch, output=output)
        comparisons.append(compare(output, expected, got))
    progress("compare with torch", len(comparisons), len(batches))
    return comparisons


def compare(output: str, expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> Comparison:
    """Error and cosine of two arrays (cells, ..., width)."""
    norms = np.linalg.norm(expected, axis=-1) * np.linalg.norm(got, axis=-1)
    cosine = (expected * got).sum(axis=-1) / norms
    max_error, scale = float(abs(expected - got).max()), float(abs(expected).max())
    return Comparison(output, len(expected), max_error, scale, float(cosine.min()))


def checked_batches(n_genes: int, decoder: bool) -> dict[Output, CellBatch]:
    """Random ragged cells for the outputs of an export with or without ``decoder``."""
    batches: dict[Output, CellBatch] = {"cell": random_cells(n_genes, CHECKED_CELL_GENES, seed=0)}
    if decoder:
        decoded = random_cells(n_genes, DECODED_CELL_GENES, seed=1)
        batches |= {"gene": decoded, "expression": decoded}
    return batches


def random_cells(n_genes: int, genes_per_cell: tuple[int, ...], seed: int) -> CellBatch:
    """Cells with the given numbers of expressed genes (at most ``n_genes``) and skewed counts."""
    generator = np.random.default_rng(seed)
    gene_ids = [
        np.sort(generator.choice(n_genes, min(genes, n_genes), replace=False)) for genes in genes_per_cell
    ]
    indptr = np.concatenate([[0], np.cumsum([len(ids) for ids in gene_ids])]).astype(np.int64)
    counts = generator.geometric(0.3, indptr[-1]).astype(np.float32)
    return CellBatch(indptr, np.concatenate(gene_ids).astype(np.int32), counts, np.arange(len(gene_ids)))
