"""Held-out loss of the model and, on exactly the same masked positions, of predicting one constant a gene."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels import MaskedCells
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.gene_means import GeneSums


@dataclass(frozen=True)
class Heldout:
    """Masked mean squared errors on held-out cells, over all ranks.

    Attributes:
        loss: the model.
        gene_mean_loss: each gene's mean under the masking distribution, the best constant there is.
        plain_gene_mean_loss: each gene's mean over all training cells, an easier opponent.
        cells: cells evaluated.
    """

    loss: float
    gene_mean_loss: float
    plain_gene_mean_loss: float
    cells: int


@torch.no_grad()
def evaluate(
    predict: Callable[[MaskedCells], Tensor],
    batches: Iterable[CellBatch],
    mask: Callable[[CellBatch], MaskedCells],
    sums: GeneSums,
    device: torch.device,
) -> Heldout:
    """Sum squared errors over this rank's ``batches``, then over ranks. Collective."""
    mean_G = torch.from_numpy(sums.objective_mean_G).to(device, torch.float32)
    plain_G = torch.from_numpy(sums.plain_mean_G).to(device, torch.float32)
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    for batch in batches:
        masked = mask(batch)
        target_X, gene_X = masked.target_X, masked.mask_position_X
        for slot, prediction_X in enumerate((predict(masked), mean_G[gene_X], plain_G[gene_X])):
            totals[slot] += (prediction_X.float() - target_X).double().square().sum()
        totals[3] += target_X.numel()
        totals[4] += len(batch)
    dist.all_reduce(totals)
    model, mean, plain, positions, cells = totals.tolist()
    if positions == 0:
        raise TrainingError(
            "no held-out cell to evaluate on: raise validation_share, or lower batch_cells x workers to fit the store"
        )
    return Heldout(model / positions, mean / positions, plain / positions, int(cells))


def sum_over_ranks(sums: GeneSums, device: torch.device) -> GeneSums:
    """Add the ranks' gene sums. Collective."""
    packed = np.concatenate([[sums.cells], sums.target_G, sums.weight_G, sums.weighted_target_G])
    total = torch.from_numpy(packed).to(device)
    dist.all_reduce(total)
    cells, vectors = total[0].item(), total[1:].cpu().numpy().reshape(3, -1)
    return GeneSums(cells, *vectors)
