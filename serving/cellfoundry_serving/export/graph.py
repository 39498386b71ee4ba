"""The model as two padded graphs, the form that ONNX Runtime and TensorRT run: encoder with pooling, and decoder.

The second one takes the first one's token embeddings, so that the encoder's weights are stored once.

Attention is ai.onnx Attention (opset 24) with ``nonpad_kv_seqlen``: key lengths instead of a mask, because a
mask would have to be B x 1 x L x L (25 MB a cell at 5,000 tokens). It demands padding on the right, so T and
S stand first.

Legend: B cells, L tokens of the longest cell, D encoder width, P positions (G genes, T, S), W decoder width.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellfoundry_model.architecture import CellModel
from cellfoundry_model.cell_rows import CellRows
from cellfoundry_model.encoder import EncoderLayer

ATTENTION_OPSET = 24


class EncoderGraph(nn.Module):
    """Tokens to their embeddings; a subclass pools them.

    ``dtype`` is the encoder layers' arithmetic; value embedding, last LayerNorm and pooling stay in float32.
    """

    def __init__(self, model: CellModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.value_embedding = model.value_embedding
        self.position_embedding = model.position_embedding
        self.layers = copy.deepcopy(model.encoder.layers).to(dtype)
        self.norm = model.encoder.norm
        self.dtype = dtype

    def encode(self, value_BL: Tensor, position_BL: Tensor, length_B: Tensor | None) -> Tensor:
        """Embedding of every token, (B, L, D) float32; without ``length_B`` all are attended to."""
        value_BLD = self.value_embedding(value_BL.flatten()).unflatten(0, value_BL.shape)
        x_BLD = (value_BLD + self.position_embedding(position_BL)).to(self.dtype)
        for layer in self.layers:
            x_BLD = run_layer(cast(EncoderLayer, layer), x_BLD, length_B)
        return self.norm(x_BLD.float())


class CellEmbeddingGraph(EncoderGraph):
    """value (B, L) float32, position (B, L) int64, length (B,) int64 -> pool "all" (B, 4 D) float32.

    With ``tokens`` the second output is every token's embedding (B, L, D) float32, which the decoder's graph takes.
    """

    def __init__(self, model: CellModel, dtype: torch.dtype = torch.float32, tokens: bool = False) -> None:
        super().__init__(model, dtype)
        self.tokens = tokens

    def forward(self, value_BL: Tensor, position_BL: Tensor, length_B: Tensor) -> tuple[Tensor, ...]:
        """Tokens of a cell are T, S, its genes, then padding; ``length_B`` counts all but the padding."""
        x_BLD = self.encode(value_BL, position_BL, length_B)
        gene_BLD = x_BLD[:, 2:]
        gene_count_B1 = (length_B - 2)[:, None]
        is_padding_BL1 = (torch.arange(gene_BLD.shape[1], device=length_B.device) >= gene_count_B1)[
            :, :, None
        ]
        gene_max_BD = gene_BLD.masked_fill(is_padding_BL1, -torch.inf).amax(1)
        gene_mean_BD = gene_BLD.masked_fill(is_padding_BL1, 0.0).sum(1) / gene_count_B1
        cell_B4D = torch.cat([x_BLD[:, 1], x_BLD[:, 0], gene_max_BD, gene_mean_BD], dim=1)
        return (cell_B4D, x_BLD) if self.tokens else (cell_B4D,)


def run_layer(layer: EncoderLayer, x_BLD: Tensor, length_B: Tensor | None) -> Tensor:
    """EncoderLayer.forward over padded tokens, or over tokens of which each attends to all (``length_B`` of None)."""
    q_BLD, k_BLD, v_BLD = layer.qkv(x_BLD).chunk(3, dim=-1)
    nonpad = [] if length_B is None else [None, None, None, length_B]
    attended_BLD = torch.onnx.ops.symbolic(
        "Attention",
        [q_BLD, k_BLD, v_BLD, *nonpad],
        {"q_num_heads": layer.heads, "kv_num_heads": layer.heads},
        dtype=x_BLD.dtype,
        shape=x_BLD.shape,
        version=ATTENTION_OPSET,
    )
    x_BLD = layer.attention_norm(x_BLD + layer.attention_out(attended_BLD))
    return layer.ffn_norm(x_BLD + layer.ffn_out(F.relu(layer.ffn_in(x_BLD))))


class DecoderGraph(nn.Module):
    """token (B, L, D) float32, position (B, L) int64 -> gene embedding (B, G, W), expression (B, G), float32.

    What a position enters the decoder with where its value is zero is a table of constants, with a row more for
    padding. A token enters as the same row plus the decoder's map of how its embedding differs from that of a zero, so
    the graph needs no position embeddings of encoder width.

    ``dtype`` is the decoder layers' arithmetic; random features and the last LayerNorms stay in float32.
    """

    zero_1D: Tensor
    table_PW: Tensor

    def __init__(self, model: CellModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.n_genes, self.n_positions = model.config.n_genes, model.config.n_positions
        with torch.no_grad():
            zero_1D = model.value_embedding(torch.zeros(1))
            self.register_buffer("zero_1D", zero_1D)
            table_PW = model.decoder_embed(zero_1D + model.position_embedding.weight)
        self.register_buffer("table_PW", table_PW)
        self.enter = model.decoder_embed.weight
        self.decoder = copy.deepcopy(model.decoder)
        for theirs, layer in zip(model.decoder.layers, self.decoder.layers, strict=True):
            layer.to(dtype)
            layer.projection_MK = theirs.projection_MK  # float32: a feature is an exponential of its products
        self.norm = model.norm
        self.to_expression = model.to_expression
        self.dtype = dtype

    def forward(self, token_BLD: Tensor, position_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Padding has the position after S; what it writes there is dropped."""
        x_BLW = self.table_PW[position_BL] + F.linear(token_BLD - self.zero_1D, self.enter)
        cells = token_BLD.shape[0]
        cell_B1 = torch.arange(cells, device=token_BLD.device)[:, None]
        x_BPW = self.table_PW.repeat(cells, 1, 1).index_put((cell_B1, position_BL), x_BLW)
        rows = CellRows((cells, self.n_positions))
        x_RW = x_BPW[:, : self.n_positions].flatten(0, 1).to(self.dtype)
        for layer in self.decoder.layers:
            x_RW = layer(x_RW, rows)
        gene_BGW = rows.spread(self.norm(self.decoder.norm(x_RW.float())))[:, : self.n_genes]
        return gene_BGW, self.to_expression(gene_BGW).squeeze(2)
