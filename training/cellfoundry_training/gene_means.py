"""What a model must beat: one constant a gene, computed on the training cells.

Two constants, because the objective weighs a gene's non-zeros about ten times more than its zeros:
the plain mean of the target, and the mean under the masking distribution, which is the constant that minimises
the objective itself and so the stronger opponent.

Legend: G genes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels.masking import THINNING_MINIMUM_TOTAL
from cellfoundry_training.config import PretrainConfig

THINNED_SHARE = 0.5
FloatArray = npt.NDArray[np.float64]


@dataclass
class GeneSums:
    """Sums over cells that both constants need; additive, so that ranks can add theirs."""

    cells: float
    target_G: FloatArray
    weight_G: FloatArray
    weighted_target_G: FloatArray

    @property
    def plain_mean_G(self) -> FloatArray:
        """Mean of the target over all cells."""
        return self.target_G / max(self.cells, 1.0)

    @property
    def objective_mean_G(self) -> FloatArray:
        """Mean of the target weighted by how often the objective asks for it; 0 for a gene it never asks for."""
        return np.divide(
            self.weighted_target_G, self.weight_G, out=np.zeros_like(self.weight_G), where=self.weight_G > 0
        )


def gene_sums(batches: Iterable[CellBatch], config: PretrainConfig, n_genes: int) -> GeneSums:
    """One streaming pass over cells; memory is a few vectors of ``n_genes``."""
    zeros = np.zeros(n_genes)
    sums = GeneSums(0.0, zeros.copy(), zeros.copy(), zeros.copy())
    for batch in batches:
        totals = np.repeat(batch.totals(), np.diff(batch.indptr))
        counts = batch.counts.astype(np.float64)
        target = np.log1p(counts / totals * 1e4)
        weight = chosen_probability(counts, totals, config)
        sums.cells += len(batch)
        sums.target_G += np.bincount(batch.gene_ids, target, n_genes)
        # A gene that is zero in a cell is asked for with zero_mask_prob: give that to all, correct the non-zeros.
        sums.weight_G += len(batch) * config.zero_mask_prob
        sums.weight_G += np.bincount(batch.gene_ids, weight - config.zero_mask_prob, n_genes)
        sums.weighted_target_G += np.bincount(batch.gene_ids, weight * target, n_genes)
    return sums


def chosen_probability(counts: FloatArray, totals: FloatArray, config: PretrainConfig) -> FloatArray:
    """Probability that a non-zero count of a cell with that total is among the chosen positions.

    Thinning may turn it into a zero first, with probability E[(1 - p)^x] = 6 / ((x + 2)(x + 3)) for
    p ~ Beta(2, 2), and zeros are chosen less often.
    """
    vanishes = 6.0 / ((counts + 2.0) * (counts + 3.0))
    if config.read_depth_aware:
        vanishes = vanishes * THINNED_SHARE * (totals >= THINNING_MINIMUM_TOTAL)
    else:
        vanishes = np.zeros_like(counts)
    return config.value_mask_prob * (1.0 - vanishes) + config.zero_mask_prob * vanishes
