"""Value embedding ("auto-discretization"): a scalar becomes a soft mixture of learned bins.

Legend: N values, D width, B bins, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cellfoundry_kernels import value_embedding
from cellfoundry_model.config import ModelConfig

# Spread of fresh embeddings, of positions too. Every gene has its own vector to learn and is asked for rarely:
# from N(0, 1) the tiny model took over three times the steps to the same loss.
EMBEDDING_STD = 0.1


class ValueEmbedding(nn.Module):
    """h = LeakyReLU_0.1(hidden(v)); weights = softmax(mix(h) + bin_alpha * h); embedding = weights @ bins.

    A value equal to the mask or pad token id takes that token's own vector instead
    (xTrimoGene, Gong et al. 2023, "auto-discretization").
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mask_token_id = config.mask_token_id
        self.pad_token_id = config.pad_token_id
        self.bin_alpha = config.bin_alpha
        self.hidden = nn.Linear(1, config.bins)
        self.mix = nn.Linear(config.bins, config.bins)
        self.bins_BD = nn.Parameter(EMBEDDING_STD * torch.randn(config.bins, config.encoder_width))
        self.mask_1D = nn.Parameter(EMBEDDING_STD * torch.randn(1, config.encoder_width))
        self.pad_1D = nn.Parameter(EMBEDDING_STD * torch.randn(1, config.encoder_width))

    def forward(
        self, value_N: Tensor, position_table_PD: Tensor | None = None, position_N: Tensor | None = None
    ) -> Tensor:
        """Embed float values (N,) -> (N, D), in the same pass plus the table's rows of their positions."""
        return value_embedding(
            value_N,
            self.hidden.weight,
            self.hidden.bias,
            self.mix.weight,
            self.mix.bias,
            self.bins_BD,
            self.bin_alpha,
            mask_1D=self.mask_1D,
            pad_1D=self.pad_1D,
            mask_token_id=self.mask_token_id,
            pad_token_id=self.pad_token_id,
            position_table_PD=position_table_PD,
            position_N=position_N,
        )
