"""The encoder and its pooling as a padded graph, the form that ONNX Runtime and TensorRT run.

Attention is ai.onnx Attention (opset 24) with ``nonpad_kv_seqlen``: key lengths instead of a mask, because a
mask would have to be B x 1 x L x L (25 MB a cell at 5,000 tokens). It demands padding on the right, so T and
S stand first.

Legend: B cells, L tokens of the longest cell, D encoder width.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellfoundry_model.architecture import CellModel
from cellfoundry_model.encoder import EncoderLayer

ATTENTION_OPSET = 24


class CellEmbeddingGraph(nn.Module):
    """value (B, L) float32, position (B, L) int64, length (B,) int64 -> pool "all" (B, 4 D) float32.

    ``dtype`` is the encoder layers' arithmetic; value embedding, last LayerNorm and pooling stay in float32.
    """

    def __init__(self, model: CellModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.value_embedding = model.value_embedding
        self.position_embedding = model.position_embedding
        self.layers = copy.deepcopy(model.encoder.layers).to(dtype)
        self.norm = model.encoder.norm
        self.dtype = dtype

    def forward(self, value_BL: Tensor, position_BL: Tensor, length_B: Tensor) -> Tensor:
        """Tokens of a cell are T, S, its genes, then padding; ``length_B`` counts all but the padding."""
        value_BLD = self.value_embedding(value_BL.flatten()).unflatten(0, value_BL.shape)
        x_BLD = (value_BLD + self.position_embedding(position_BL)).to(self.dtype)
        for layer in self.layers:
            x_BLD = run_layer(cast(EncoderLayer, layer), x_BLD, length_B)
        x_BLD = self.norm(x_BLD.float())
        gene_BLD = x_BLD[:, 2:]
        gene_count_B1 = (length_B - 2)[:, None]
        is_padding_BL1 = (torch.arange(gene_BLD.shape[1], device=length_B.device) >= gene_count_B1)[
            :, :, None
        ]
        gene_max_BD = gene_BLD.masked_fill(is_padding_BL1, -torch.inf).amax(1)
        gene_mean_BD = gene_BLD.masked_fill(is_padding_BL1, 0.0).sum(1) / gene_count_B1
        return torch.cat([x_BLD[:, 1], x_BLD[:, 0], gene_max_BD, gene_mean_BD], dim=1)


def run_layer(layer: EncoderLayer, x_BLD: Tensor, length_B: Tensor) -> Tensor:
    """EncoderLayer.forward over padded tokens."""
    q_BLD, k_BLD, v_BLD = layer.qkv(x_BLD).chunk(3, dim=-1)
    attended_BLD = torch.onnx.ops.symbolic(
        "Attention",
        [q_BLD, k_BLD, v_BLD, None, None, None, length_B],
        {"q_num_heads": layer.heads, "kv_num_heads": layer.heads},
        dtype=x_BLD.dtype,
        shape=x_BLD.shape,
        version=ATTENTION_OPSET,
    )
    x_BLD = layer.attention_norm(x_BLD + layer.attention_out(attended_BLD))
    return layer.ffn_norm(x_BLD + layer.ffn_out(F.relu(layer.ffn_in(x_BLD))))
