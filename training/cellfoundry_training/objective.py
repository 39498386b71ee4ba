"""The pretraining objective: predict the raw cell at chosen positions of its masked, perhaps downsampled, self.

xTrimoGene (Gong et al. 2023) and scFoundation (Hao et al. 2024): mean squared error on log1p of counts per
10,000, on the chosen positions only. Masks are a function of (seed, step, cell), so neither the company of a cell
nor the number of ranks changes them.

Legend: X chosen positions over all cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cellfoundry_data.batch import CellBatch
from cellfoundry_kernels import MaskedCells, mask_cells, masked_mse
from cellfoundry_model.decoder_context import DecoderContext, draw_context
from cellfoundry_training.batches import CellTensors

if TYPE_CHECKING:
    from cellfoundry_training.config import PretrainConfig

# Optimizer steps count from 1, so no training batch ever sees the masks of evaluation.
EVALUATION_STEP = 0


@dataclass(frozen=True)
class Masking:
    """Everything that decides what a model is given but the step and the cells; see ``mask_cells`` for each value.

    Attributes:
        context_rate: share of the zeros not chosen that the decoder computes in training; None for all of them.
    """

    n_genes: int
    mask_token_id: float
    seed: int = 0
    value_mask_prob: float = 0.3
    zero_mask_prob: float = 0.03
    replace_prob: float = 0.8
    random_prob: float = 0.1
    read_depth_aware: bool = True
    context_rate: float | None = None

    @classmethod
    def of(cls, config: PretrainConfig, n_genes: int) -> Masking:
        """That of a run."""
        return cls(
            n_genes,
            config.architecture(n_genes).mask_token_id,
            config.seed,
            config.value_mask_prob,
            config.zero_mask_prob,
            config.replace_prob,
            config.random_prob,
            config.read_depth_aware,
            config.context_rate if config.decoder_context == "sampled" else None,
        )

    def mask(self, cells: CellTensors, step: int) -> MaskedCells:
        """Choose, hide and downsample on the cells' device."""
        return mask_cells(
            *cells.tensors(),
            n_genes=self.n_genes,
            seed=self.seed,
            step=step,
            value_mask_prob=self.value_mask_prob,
            zero_mask_prob=self.zero_mask_prob,
            replace_prob=self.replace_prob,
            random_prob=self.random_prob,
            read_depth_aware=self.read_depth_aware,
            mask_token_id=self.mask_token_id,
        )

    def sample(self, masked: MaskedCells, cell_ids: Tensor, step: int) -> DecoderContext | None:
        """The zeros that the decoder computes in training step ``step``; None for all."""
        if self.context_rate is None:
            return None
        return draw_context(
            masked,
            cell_ids,
            n_genes=self.n_genes,
            rate=self.context_rate,
            seed=self.seed,
            step=step,
        )


def mask_batch(
    batch: CellBatch, config: PretrainConfig, *, n_genes: int, step: int, device: torch.device
) -> MaskedCells:
    """Mask cells that are still in the host's memory; the store row is a cell's identity."""
    return Masking.of(config, n_genes).mask(CellTensors.of(batch, device), step)


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
