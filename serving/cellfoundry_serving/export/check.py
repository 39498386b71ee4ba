"""An export is worth something only if it computes what torch computes: the comparison, and the bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
class CheckedCells:
    """Cells on which two engines are compared.

    Attributes:
        output: "cell", "gene" or "expression".
        batch: the cells.
        target: depth T asked for.
    """

    output: Output
    batch: CellBatch
    target: str = "t4"


@dataclass(frozen=True)
class Comparison:
    """How far two engines are apart on the same cells.

    Attributes:
        output: "cell", "gene" or "expression".
        cells: cells compared.
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
            f"{self.output}: max error {self.max_error:.1e}, cosine at least {floor_digits(self.min_cosine)} "
            f"({self.cells} cells)"
        )


def floor_digits(cosine: float) -> str:
    """A cosine with seven digits, rounded down: what is printed as 0.9990000 keeps a bar of 0.999."""
    return f"{math.floor(cosine * 1e7) / 1e7:.7f}" if math.isfinite(cosine) else str(cosine)


def check_against(
    reference: Engine, engine: Engine, bar: Bar, cells: Sequence[CheckedCells], progress: Progress
) -> list[Comparison]:
    """Comparisons with ``reference``, one an output; ServingError where one misses ``bar``."""
    comparisons = compare_engines(reference, engine, cells, progress)
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
    reference: Engine, engine: Engine, cells: Sequence[CheckedCells], progress: Progress
) -> list[Comparison]:
    """Compares two engines, one comparison an output; of poolings "all", which holds every number."""
    parts: dict[str, list[Comparison]] = {}
    for done, checked in enumerate(cells):
        progress("compare with torch", done, len(cells))
        expected, got = (
            each.encode(checked.batch, output=checked.output, target=checked.target)
            for each in (reference, engine)
        )
        parts.setdefault(checked.output, []).append(compare(checked.output, expected, got))
    progress("compare with torch", len(cells), len(cells))
    return [worst(comparisons) for comparisons in parts.values()]


def compare(output: str, expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> Comparison:
    """Error and cosine, in float64, of two arrays (cells, ..., width)."""
    expected_64, got_64 = expected.astype(np.float64), got.astype(np.float64)
    norms = np.linalg.norm(expected_64, axis=-1) * np.linalg.norm(got_64, axis=-1)
    cosine = np.minimum((expected_64 * got_64).sum(axis=-1) / norms, 1)
    max_error, scale = float(abs(expected_64 - got_64).max()), float(abs(expected_64).max())
    return Comparison(output, len(expected), max_error, scale, float(cosine.min()))


def worst(comparisons: Sequence[Comparison]) -> Comparison:
    """One comparison over the cells of all, which are of one output; NaN stays NaN."""
    return Comparison(
        comparisons[0].output,
        sum(comparison.cells for comparison in comparisons),
        float(np.max([comparison.max_error for comparison in comparisons])),
        float(np.max([comparison.scale for comparison in comparisons])),
        float(np.min([comparison.min_cosine for comparison in comparisons])),
    )


def checked_cells(n_genes: int, decoder: bool) -> list[CheckedCells]:
    """Random ragged cells for the outputs of an export with or without ``decoder``."""
    cells = [CheckedCells("cell", random_cells(n_genes, CHECKED_CELL_GENES, seed=0))]
    if decoder:
        decoded = random_cells(n_genes, DECODED_CELL_GENES, seed=1)
        cells += [CheckedCells("gene", decoded), CheckedCells("expression", decoded)]
    return cells


def checked_note(n_genes: int) -> str:
    """What ``checked_cells`` are, for people."""
    genes = min(CHECKED_CELL_GENES[-1], n_genes)
    return f"compared on synthetic cells of 1 to {genes:,} genes with random counts"


def random_cells(n_genes: int, genes_per_cell: tuple[int, ...], seed: int) -> CellBatch:
    """Cells with the given numbers of expressed genes (at most ``n_genes``) and skewed counts."""
    generator = np.random.default_rng(seed)
    gene_ids = [
        np.sort(generator.choice(n_genes, min(genes, n_genes), replace=False)) for genes in genes_per_cell
    ]
    indptr = np.concatenate([[0], np.cumsum([len(ids) for ids in gene_ids])]).astype(np.int64)
    counts = generator.geometric(0.3, indptr[-1]).astype(np.float32)
    return CellBatch(indptr, np.concatenate(gene_ids).astype(np.int32), counts, np.arange(len(gene_ids)))
