"""Encoder: a post-LayerNorm transformer over packed tokens, so no cell is padded to the longest one.

Legend: N tokens over all cells, D width, H heads, K channels of a head.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cellfoundry_kernels import varlen_attention
from cellfoundry_model.config import ModelConfig


class EncoderLayer(nn.Module):
    """x = LN(x + attention(x)); x = LN(x + feed_forward(x)), with ReLU between the two linear maps."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.heads = config.encoder_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-5)
        self.ffn_in = nn.Linear(width, config.encoder_ffn_width)
        self.ffn_out = nn.Linear(config.encoder_ffn_width, width)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x_ND: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """One layer over packed tokens; a token attends to all tokens of its own cell."""
        q_NHK, k_NHK, v_NHK = self.qkv(x_ND).unflatten(1, (3, self.heads, -1)).unbind(1)
        attended_NHK = varlen_attention(q_NHK, k_NHK, v_NHK, cu_seqlens, max_seqlen)
        x_ND = self.attention_norm(x_ND + self.attention_out(attended_NHK.flatten(1)))
        return self.ffn_norm(x_ND + self.ffn_out(F.relu(self.ffn_in(x_ND))))


class Encoder(nn.Module):
    """The encoder's layers and the LayerNorm after them.

    Attributes:
        checkpointing: keep only each layer's input for the backward pass, which computes the layer again.
    """

    checkpointing = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_depth))
        self.norm = nn.LayerNorm(config.encoder_width, eps=1e-5)

    def forward(self, x_ND: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Run packed tokens (N, D) of cells bounded by ``cu_seqlens`` -> (N, D)."""
        for layer in self.layers:
            if self.checkpointing:
                # No layer draws random numbers, so there is no generator to put back.
                x_ND = checkpoint(
                    layer, x_ND, cu_seqlens, max_seqlen, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_ND = layer(x_ND, cu_seqlens, max_seqlen)
        return self.norm(x_ND)
