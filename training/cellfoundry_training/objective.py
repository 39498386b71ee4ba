"""The pretraining objective: predict the raw cell at chosen positions of its masked, perhaps downsampled, self.

xTrimoGene (Gong et al. 2023) and scFoundation (Hao et al. 2024): mean squared error on log1p of counts per
10,000, on the chosen positions only. Masks are a function of (seed, step, cell), so neither the company of a cell
nor the number of ranks changes them.

Legend: X chosen positions over all cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels import MaskedCells, mask_cells, masked_mse
from cellfoundry_training.config import PretrainConfig

# Optimizer steps count from 1, so no training batch ever sees the masks of evaluation.
EVALUATION_STEP = 0


def mask_batch(
    batch: CellBatch, config: PretrainConfig, *, n_genes: int, step: int, device: torch.device
) -> MaskedCells:
    """Choose, hide and downsample on ``device``; the store row is a cell's identity."""
    return mask_cells(
        torch.from_numpy(batch.indptr).to(device),
        torch.from_numpy(batch.gene_ids).to(device),
        torch.from_numpy(batch.counts).to(device),
        torch.from_numpy(batch.row_ids).to(device),
        n_genes=n_genes,
        seed=config.seed,
        step=step,
        value_mask_prob=config.value_mask_prob,
        zero_mask_prob=config.zero_mask_prob,
        replace_prob=config.replace_prob,
        random_prob=config.random_prob,
        read_depth_aware=config.read_depth_aware,
        mask_token_id=config.architecture(n_genes).mask_token_id,
    )


def share_of_global_loss(
    prediction_X: Tensor, target_X: Tensor, global_positions: int, micro_batches: int
) -> Tensor:
    """This micro-batch's term of the mean over all chosen positions of the whole global batch.

    DeepSpeed averages gradients over ``micro_batches`` = ranks x accumulated batches; scaling each term by its share
    of the positions makes that average the gradient of the one global mean, however cells are dealt out.
    """
    if target_X.numel() == 0:
        return prediction_X.sum() * 0.0
    return masked_mse(prediction_X, target_X) * (target_X.numel() * micro_batches / global_positions)
