"""What an evaluation adds up: squared errors by depth of the cell, and each gene's sums for a correlation.

Everything is a sum over chosen positions, so ranks add theirs and no matrix of cells x genes exists; memory is
about 12 float64 a gene. Sums are float64 because they run over millions of positions.

Legend: X chosen positions, C cells, G genes, B depth bins times two (input as it is, input thinned).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from cellfoundry_kernels import MaskedCells

DEPTH_EDGES = (1_000.0, 2_000.0, 5_000.0, 10_000.0)
"""Raw totals where one bin ends and the next begins."""
DEPTH_NAMES = ("under 1k", "1k-2k", "2k-5k", "5k-10k", "over 10k")
BINS = 2 * len(DEPTH_NAMES)
MIN_OBSERVATIONS = 20
"""Chosen positions that a gene needs for its correlation to say anything."""
SMALLEST_VARIANCE = 1e-9
"""Variance over mean square below which a gene counts as constant: rounding of the sums is about 1e-13."""

# What is added for each bin.
MODEL, GENE_MEAN, PLAIN_GENE_MEAN, POSITIONS, CELLS = range(5)


@dataclass(frozen=True)
class DepthBin:
    """Masked mean squared errors over the cells of one depth; losses are None where nothing was chosen.

    Attributes:
        depth: the raw total's bin, one of DEPTH_NAMES.
        thinned: whether the model's input had fewer counts than the raw cell.
        cells: number of cells.
        positions: chosen positions in them.
        loss: the model.
        gene_mean_loss: each gene's mean under the masking distribution.
    """

    depth: str
    thinned: bool
    cells: int
    positions: int
    loss: float | None
    gene_mean_loss: float | None


@dataclass(frozen=True)
class GenePearson:
    """Pearson correlation of prediction and target at a gene's chosen positions, over cells.

    Attributes:
        mean: over genes; None if no gene has enough observations.
        median: over genes.
        genes: genes with at least MIN_OBSERVATIONS positions, where neither side is constant.
    """

    mean: float | None
    median: float | None
    genes: int


class HeldoutSums:
    """Sums over held-out cells; two of them over different cells add up."""

    def __init__(self, n_genes: int, device: torch.device) -> None:
        self._bins_5B = torch.zeros(5, BINS, dtype=torch.float64, device=device)
        self._genes_6G = torch.zeros(6, n_genes, dtype=torch.float64, device=device)

    def add(
        self,
        masked: MaskedCells,
        total_C: npt.NDArray[np.float64],
        prediction_X: Tensor,
        gene_mean_X: Tensor,
        plain_gene_mean_X: Tensor,
    ) -> None:
        """Take in a batch: raw totals (cells,) and three predictions at its chosen positions."""
        bin_C = depth_bins(masked, total_C)
        bin_X, target_X = bin_C[masked.mask_cell_index_X], masked.target_X.double()
        for slot, guess_X in enumerate((prediction_X, gene_mean_X, plain_gene_mean_X)):
            self._bins_5B[slot].index_add_(0, bin_X, (guess_X.double() - target_X).square())
        self._bins_5B[POSITIONS].index_add_(0, bin_X, torch.ones_like(target_X))
        self._bins_5B[CELLS].index_add_(0, bin_C, torch.ones_like(bin_C, dtype=torch.float64))
        p_X = prediction_X.double()
        products = (torch.ones_like(p_X), p_X, target_X, p_X * p_X, target_X * target_X, p_X * target_X)
        for slot, product_X in enumerate(products):
            self._genes_6G[slot].index_add_(0, masked.mask_position_X, product_X)

    def add_ranks(self) -> None:
        """Add the sums of all ranks. Collective."""
        dist.all_reduce(self._bins_5B)
        dist.all_reduce(self._genes_6G)

    @property
    def cells(self) -> int:
        """Cells taken in."""
        return int(self._bins_5B[CELLS].sum())

    def losses(self) -> tuple[float, float, float] | None:
        """Masked MSE of the model, the gene means and the plain gene means; None without a position."""
        totals = self._bins_5B.sum(1).tolist()
        if totals[POSITIONS] == 0:
            return None
        model, mean, plain = (
            totals[slot] / totals[POSITIONS] for slot in (MODEL, GENE_MEAN, PLAIN_GENE_MEAN)
        )
        return model, mean, plain

    def by_depth(self) -> tuple[DepthBin, ...]:
        """One entry a bin that holds cells, shallow first, thinned after unthinned."""
        entries = []
        for index, sums in enumerate(self._bins_5B.T.tolist()):
            if sums[CELLS]:
                positions = sums[POSITIONS]
                losses = [sums[slot] / positions if positions else None for slot in (MODEL, GENE_MEAN)]
                name = DEPTH_NAMES[index // 2]
                entries.append(DepthBin(name, bool(index % 2), int(sums[CELLS]), int(positions), *losses))
        return tuple(entries)

    def pearson(self) -> GenePearson:
        """Correlations of the genes that were seen often enough."""
        n_G, p_G, t_G, pp_G, tt_G, pt_G = self._genes_6G.cpu()
        variance_p_G, variance_t_G = n_G * pp_G - p_G.square(), n_G * tt_G - t_G.square()
        usable_G = (
            (n_G >= MIN_OBSERVATIONS)
            & (variance_p_G > SMALLEST_VARIANCE * n_G * pp_G)
            & (variance_t_G > SMALLEST_VARIANCE * n_G * tt_G)
        )
        covariance_G = n_G * pt_G - p_G * t_G
        r_G = (covariance_G[usable_G] / (variance_p_G * variance_t_G)[usable_G].sqrt()).clamp(-1.0, 1.0)
        if not len(r_G):
            return GenePearson(None, None, 0)
        return GenePearson(float(r_G.mean()), float(r_G.quantile(0.5)), len(r_G))


def depth_bins(masked: MaskedCells, total_C: npt.NDArray[np.float64]) -> Tensor:
    """Index of each cell's bin, int64 (cells,): twice the depth's, plus one for a thinned input.

    A cell is thinned where S, log10 of the input's total, is below T, log10 of the raw total.
    """
    depth_C = torch.from_numpy(np.searchsorted(DEPTH_EDGES, total_C, side="right"))
    last_C = masked.cu_seqlens[1:].long()
    thinned_C = masked.value_N[last_C - 1] < masked.value_N[last_C - 2]
    return 2 * depth_C.to(thinned_C.device) + thinned_C.long()
