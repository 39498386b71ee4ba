"""Decoder: a pre-LayerNorm Performer over positions of cells, all or a sample, linear in their number.

Rows are packed: a cell's may be as many as it likes, and only attention sees them in a table of one line a cell.

Legend: R rows over all cells, C cells, P places of that table, W decoder width, I heads x head_dim, H heads,
K channels of a head, M random features, X asked rows over all cells, Q places of the table of those.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cellfoundry_kernels import favor_attention
from cellfoundry_model.cell_rows import CellRows
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


class Asked(NamedTuple):
    """Rows whose result is wanted.

    Attributes:
        row_X: int64, each one's number among all rows.
        rows: the cells that these belong to.
    """

    row_X: Tensor
    rows: CellRows


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

    def forward(self, x_RW: Tensor, rows: CellRows, asked: Asked | None = None) -> Tensor:
        """One layer; a row attends to all rows of its own cell, each as often as it counts.

        Returns (R, W), or (X, W) where only the rows ``asked`` are wanted: keys and values still come from every row,
        all else is computed for those alone.
        """
        normed_RW = self.attention_norm(x_RW)
        if asked is None:
            x_XW, normed_XW, asked_rows = x_RW, normed_RW, rows
        else:
            x_XW, asked_rows = x_RW.index_select(0, asked.row_X), asked.rows
            normed_XW = self.attention_norm(x_XW)
        attended_CHQK = favor_attention(
            self._split_heads(asked_rows.spread(self.query(normed_XW))),
            self._split_heads(rows.spread(self.key(normed_RW))),
            self._split_heads(rows.spread(self.value(normed_RW))),
            self.projection_MK,
            key_weight_CP=rows.weight_CP,
        )
        attended_XI = asked_rows.collect(attended_CHQK.transpose(1, 2).flatten(2))
        x_XW = x_XW + self.attention_out(attended_XI)
        return x_XW + self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(x_XW))))

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

    def forward(self, x_RW: Tensor, rows: CellRows, asked: Asked | None = None) -> Tensor:
        """Run all rows (R, W) -> (R, W), or (X, W) for the rows ``asked``.

        The last layer skips what is not asked for, which in pretraining is nine positions of ten.
        """
        for layer in self.layers[:-1]:
            x_RW = self._run(layer, x_RW, rows)
        return self.norm(self._run(self.layers[-1], x_RW, rows, asked))

    def _run(self, layer: nn.Module, *inputs: Tensor | CellRows | Asked | None) -> Tensor:
        if self.checkpointing:
            # No layer draws random numbers, so there is no generator to put back.
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return layer(*inputs)
