"""An export is worth something only if it computes what torch computes: the comparison, and the bars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.engines.base import POOLS, Engine
from cellfoundry_serving.errors import ServingError

CHECKED_CELL_GENES = (1, 2, 17, 60, 200, 700, 1500)


@dataclass(frozen=True)
class Bar:
    """What an export must keep: ``max_error`` is absolute, but relative where numbers exceed 1."""

    max_error: float
    min_cosine: float


FP32_BAR = Bar(max_error=1e-4, min_cosine=0.99999)
FP16_BAR = Bar(max_error=5e-2, min_cosine=0.9999)


@dataclass(frozen=True)
class Comparison:
    """How far two engines are apart on the same cells.

    Attributes:
        cells: cells compared, of very different lengths.
        max_error: largest absolute difference of any number.
        scale: largest absolute number.
        min_cosine: smallest cosine between a cell's two embeddings.
    """

    cells: int
    max_error: float
    scale: float
    min_cosine: float

    def passes(self, bar: Bar) -> bool:
        """True where both parts of the bar hold; NaN fails."""
        return self.max_error <= bar.max_error * max(1.0, self.scale) and self.min_cosine >= bar.min_cosine

    def summary(self) -> str:
        """One line for people."""
        return (
            f"checked against torch on {self.cells} cells: max error {self.max_error:.1e}, "
            f"cosine at least {self.min_cosine:.7f}"
        )


def check_against(reference: Engine, engine: Engine, bar: Bar) -> Comparison:
    """Compares two engines on random ragged cells, in one batch, for every pooling.

    Returns the comparison with the larger error; ServingError where one misses ``bar``.
    """
    batch = random_cells(len(reference.vocab_genes), CHECKED_CELL_GENES, seed=0)
    both = [compare(reference.encode(batch, pool=pool), engine.encode(batch, pool=pool)) for pool in POOLS]
    for comparison in both:
        if not comparison.passes(bar):
            raise ServingError(
                f"The export was discarded: it is far from torch (max error {comparison.max_error:.1e}, "
                f"cosine {comparison.min_cosine:.7f}); please report it with the model's config.json."
            )
    return max(both, key=lambda comparison: comparison.max_error)


def compare(expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> Comparison:
    """Error and cosine of two (cells, width) arrays."""
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    cosine = (expected * got).sum(axis=1) / norms
    max_error, scale = float(abs(expected - got).max()), float(abs(expected).max())
    return Comparison(len(expected), max_error, scale, float(cosine.min()))


def random_cells(n_genes: int, genes_per_cell: tuple[int, ...], seed: int) -> CellBatch:
    """Cells with the given numbers of expressed genes (at most ``n_genes``) and skewed counts."""
    generator = np.random.default_rng(seed)
    gene_ids = [
        np.sort(generator.choice(n_genes, min(genes, n_genes), replace=False)) for genes in genes_per_cell
    ]
    indptr = np.concatenate([[0], np.cumsum([len(ids) for ids in gene_ids])]).astype(np.int64)
    counts = generator.geometric(0.3, indptr[-1]).astype(np.float32)
    return CellBatch(indptr, np.concatenate(gene_ids).astype(np.int32), counts, np.arange(len(gene_ids)))
