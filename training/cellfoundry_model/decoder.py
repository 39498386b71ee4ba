"""Decoder: a pre-LayerNorm Performer over every position of a cell, linear in their number.

Legend: C cells, P positions, W decoder width, H heads, K channels of a head, M random features,
Q asked positions of a cell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cellfoundry_kernels import favor_attention
from cellfoundry_model.config import ModelConfig


def draw_projection(features: int, head_dim: int) -> Tensor:
    """Random features for FAVOR+ (M, K): blocks of orthogonal rows, each as long as a Gaussian vector.

    Choromanski et al. 2021, "Rethinking Attention with Performers", section 2.4: orthogonal rows lower the
    variance of the softmax estimate, and chi-distributed lengths keep every row marginally Gaussian.
    """
    blocks = []
    for first in range(0, features, head_dim):
        q_KK, _ = torch.linalg.qr(torch.randn(head_dim, head_dim))
        blocks.append(q_KK.T[: features - first])
    lengths_M1 = torch.randn(features, head_dim).norm(dim=1, keepdim=True)
    return torch.cat(blocks) * lengths_M1


class DecoderLayer(nn.Module):
    """x += attention(LN(x)); x += feed_forward(LN(x)), with exact GELU between the two linear maps."""

    projection_MK: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.decoder_width, config.decoder_heads * config.decoder_head_dim
        self.heads = config.decoder_heads
        self.attention_norm = nn.LayerNorm(width, eps=1e-5)
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.attention_out = nn.Linear(inner, width)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-5)
        self.ffn_in = nn.Linear(width, config.decoder_ffn_width)
        self.ffn_out = nn.Linear(config.decoder_ffn_width, width)
        self.register_buffer("projection_MK", draw_projection(config.favor_features, config.decoder_head_dim))

    def forward(self, x_CPW: Tensor, asked_CQ: Tensor | None = None) -> Tensor:
        """One layer; a position attends to all positions of its own cell.

        Returns (C, P, W), or (C, Q, W) where only the positions ``asked_CQ`` (int64) are wanted: keys and
        values still come from every position, all else is computed for those alone.
        """
        normed_CPW = self.attention_norm(x_CPW)
        if asked_CQ is None:
            x_CQW, normed_CQW = x_CPW, normed_CPW
        else:
            x_CQW = _at_positions(x_CPW, asked_CQ)
            normed_CQW = self.attention_norm(x_CQW)
        attended_CHQK = favor_attention(
            self._split_heads(self.query(normed_CQW)),
            self._split_heads(self.key(normed_CPW)),
            self._split_heads(self.value(normed_CPW)),
            self.projection_MK,
        )
        x_CQW = x_CQW + self.attention_out(attended_CHQK.transpose(1, 2).flatten(2))
        return x_CQW + self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(x_CQW))))

    def _split_heads(self, x_CPI: Tensor) -> Tensor:
        return x_CPI.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Decoder(nn.Module):
    """The decoder's layers and the LayerNorm after them.

    Attributes:
        checkpointing: keep only each layer's input for the backward pass, which computes the layer again.
    """

    checkpointing = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(config.decoder_width, eps=1e-5)

    def forward(self, x_CPW: Tensor, asked_CQ: Tensor | None = None) -> Tensor:
        """Run all positions of each cell (C, P, W) -> (C, P, W), or (C, Q, W) at the positions ``asked_CQ``.

        The last layer skips what is not asked for, which in pretraining is nine positions of ten.
        """
        for layer in self.layers[:-1]:
            x_CPW = self._run(layer, x_CPW)
        return self.norm(self._run(self.layers[-1], x_CPW, asked_CQ))

    def _run(self, layer: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpointing:
            # No layer draws random numbers, so there is no generator to put back.
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return layer(*inputs)


def _at_positions(x_CPW: Tensor, position_CQ: Tensor) -> Tensor:
    return x_CPW.gather(1, position_CQ[:, :, None].expand(-1, -1, x_CPW.shape[2]))
