"""How far predicted expression is from the truth, gene by gene.

x is the truth and y the prediction, both log1p of counts per 10,000. "Expressed" genes of a cell are those with x > 0,
which the published experiment judges alone; a prediction that is too high where nothing is expressed costs nothing
there, so all genes are judged beside it.

Legend: C cells, G genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
LEAST_EXPRESSING_CELLS = 10
"""A gene's correlation over cells is judged where so many of them express it."""

SCORES = {
    "mae": "MAE, expressed genes",
    "mre": "MRE, expressed genes",
    "pcc": "PCC, expressed genes",
    "mae_one": "MAE, expressed genes, at least one molecule",
    "mae_all": "MAE, all genes",
    "mae_all_half": "MAE, all genes, below half a molecule none",
    "rmse_all": "RMSE, all genes",
    "pcc_all": "PCC, all genes",
    "pcc_gene": "PCC of a gene over cells",
}
"""Scores by key, as they should be read; lower is better for all but the correlations."""


@dataclass(frozen=True)
class GeneErrors:
    """Scores of every judged cell, and the one that has none of its own.

    Attributes:
        of_cells: score -> (C,); NaN where a correlation is not defined, as for a constant prediction.
        pcc_gene: median over genes of the correlation over cells; NaN where no gene can be judged.
    """

    of_cells: dict[str, npt.NDArray[np.float64]]
    pcc_gene: float


def gene_errors(true_CG: Floats, predicted_CG: Floats, full_total_C: Floats) -> GeneErrors:
    """Errors of predictions, cell by cell.

    mae: mean of |y - x| over the cell's expressed genes. mre: mean of |y - x| / x over them. pcc: Pearson's over them.
    mae_all, rmse_all, pcc_all: the same over all genes, and the root of the mean of (y - x)^2.

    mae_one and mae_all_half give every prediction what follows from the full depth, ``full_total_C`` molecules: an
    expressed gene has at least one molecule, so y is at least log1p(1e4 / total); and of all genes, where y is
    below log1p(0.5e4 / total) the number of molecules next to it is 0, which it becomes. A mean over cells that
    mostly have none is the best guess by squares and a bad one by absolute errors, whoever makes it.

    pcc_gene: Pearson's
    over cells, for genes that at least 10 cells express, the median of genes; a constant prediction counts as 0.
    """
    expressed_CG = true_CG > 0
    one_C1, half_C1 = (np.log1p(molecules * 1e4 / full_total_C)[:, None] for molecules in (1.0, 0.5))
    error_CG = np.abs(predicted_CG - true_CG)
    of_cells = {
        "mae": _mean(error_CG, expressed_CG),
        "mre": _mean(
            np.divide(error_CG, true_CG, out=np.zeros_like(error_CG), where=expressed_CG), expressed_CG
        ),
        "pcc": _pearson(true_CG, predicted_CG, expressed_CG),
        "mae_one": _mean(np.abs(np.maximum(predicted_CG, one_C1) - true_CG), expressed_CG),
        "mae_all": error_CG.mean(1, dtype=np.float64),
        "mae_all_half": np.abs(np.where(predicted_CG < half_C1, 0.0, predicted_CG) - true_CG).mean(1),
        "rmse_all": np.sqrt(np.square(error_CG).mean(1, dtype=np.float64)),
        "pcc_all": _pearson(true_CG, predicted_CG, np.ones_like(expressed_CG)),
    }
    judged_G = expressed_CG.sum(0) >= LEAST_EXPRESSING_CELLS
    if not judged_G.any():
        return GeneErrors(of_cells, float("nan"))
    true_GC, predicted_GC = true_CG[:, judged_G].T, predicted_CG[:, judged_G].T
    pcc_G = _pearson(true_GC, predicted_GC, np.ones_like(true_GC, dtype=np.bool_))
    return GeneErrors(of_cells, float(np.median(np.nan_to_num(pcc_G))))


def _mean(value_CG: Floats, chosen_CG: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    return (value_CG * chosen_CG).sum(1, dtype=np.float64) / chosen_CG.sum(1)


def _pearson(
    true_CG: Floats, predicted_CG: Floats, chosen_CG: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Of each row over its chosen columns; NaN where one side does not vary."""
    true_CG, predicted_CG = (
        np.where(chosen_CG, value_CG - _mean(value_CG, chosen_CG)[:, None], 0.0)
        for value_CG in (true_CG, predicted_CG)
    )
    scale_C = np.sqrt(np.square(true_CG).sum(1) * np.square(predicted_CG).sum(1))
    product_C = (true_CG * predicted_CG).sum(1)
    # Of a constant, rounding leaves about 1e-8 of its square.
    varies_C = scale_C > 1e-6 * np.square(true_CG).sum(1)
    return np.divide(product_C, scale_C, out=np.full(len(scale_C), np.nan), where=varies_C)
