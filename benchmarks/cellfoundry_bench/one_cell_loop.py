"""The peer of the embedding suite: one cell at a time through torch's own transformer layers, in float32.

That is how the official embedding script works: a dense vector over all positions is built for each cell, its
positive entries are gathered, and `torch.nn.TransformerEncoderLayer` runs on a batch of one with a padding
mask. For gene embeddings the value embedding of all positions is computed, zeros too, encoder outputs are put into
it, and Performer layers follow, whose feature maps are in memory. Written from the architecture's description; it takes
the weights of our model, so results must agree.

Legend: P positions, n tokens of the cell, D encoder width, W decoder width, B bins, H heads, K channels of a head, M
random features.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.decoder import DecoderLayer
from cellfoundry_model.encoder import EncoderLayer


class OneCellLoop:
    """Embeddings of raw counts, one cell a forward pass; those of cells are pool "all", T = 4 for both."""

    def __init__(self, model: CellModel) -> None:
        self._model = model.eval()
        self._device = model.position_embedding.weight.device
        self._layers = [
            torch_layer(layer) for layer in model.encoder.layers if isinstance(layer, EncoderLayer)
        ]

    @torch.no_grad()
    def encode_genes(self, batch: CellBatch) -> npt.NDArray[np.float32]:
        """Gene embeddings (cells, genes, decoder width), in the batch's order."""
        cells = range(len(batch))
        return np.concatenate(
            [self._one_cell_genes(*self._dense(batch, cell)).cpu().numpy() for cell in cells]
        )

    @torch.no_grad()
    def encode(self, batch: CellBatch) -> npt.NDArray[np.float32]:
        """(cells, 4 x width), in the batch's order."""
        cells = range(len(batch))
        return np.concatenate([self._one_cell(*self._dense(batch, cell)).cpu().numpy() for cell in cells])

    def _dense(self, batch: CellBatch, cell: int) -> tuple[Tensor, Tensor]:
        """Values over all positions, (1, P), and the positions that hold a token, (1, n), T and S last."""
        entries = slice(batch.indptr[cell], batch.indptr[cell + 1])
        counts = np.zeros(self._model.config.n_positions, np.float32)
        counts[batch.gene_ids[entries]] = batch.counts[entries]
        total = counts.sum()
        values = np.log1p(counts / total * 1e4)
        values[-2:] = 4.0, np.log10(total)
        value_1P, position_1n = (
            torch.from_numpy(values)[None],
            torch.from_numpy(np.flatnonzero(values > 0))[None],
        )
        return value_1P.to(self._device), position_1n.to(self._device)

    def _one_cell(self, value_1P: Tensor, position_1n: Tensor) -> Tensor:
        x_1nD = self._encoded(value_1P, position_1n)
        genes_1gD = x_1nD[:, :-2]
        return torch.cat([x_1nD[:, -1], x_1nD[:, -2], genes_1gD.amax(1), genes_1gD.mean(1)], dim=1)

    def _one_cell_genes(self, value_1P: Tensor, position_1n: Tensor) -> Tensor:
        model = self._model
        x_1PD = self._value_embedding(value_1P)
        x_1PD[0, position_1n[0]] = self._encoded(value_1P, position_1n)[0]
        position_1P = torch.arange(value_1P.shape[1], device=self._device)[None]
        x_1PW = model.decoder_embed(x_1PD + model.position_embedding(position_1P))
        for layer in model.decoder.layers:
            x_1PW = performer_layer(cast(DecoderLayer, layer), x_1PW)
        return model.norm(model.decoder.norm(x_1PW))[:, : model.config.n_genes]

    def _encoded(self, value_1P: Tensor, position_1n: Tensor) -> Tensor:
        value_1n = value_1P.gather(1, position_1n)
        x_1nD = self._value_embedding(value_1n) + self._model.position_embedding(position_1n)
        padding_1n = torch.zeros_like(position_1n, dtype=torch.bool)
        for layer in self._layers:
            x_1nD = layer(x_1nD, src_key_padding_mask=padding_1n)
        return self._model.encoder.norm(x_1nD)

    def _value_embedding(self, value_1n: Tensor) -> Tensor:
        embedding = self._model.value_embedding
        hidden_1nB = F.leaky_relu(embedding.hidden(value_1n[..., None]), 0.1)
        weight_1nB = F.softmax(embedding.mix(hidden_1nB) + embedding.bin_alpha * hidden_1nB, dim=-1)
        return weight_1nB @ embedding.bins_BD


def performer_layer(layer: DecoderLayer, x_1PW: Tensor) -> Tensor:
    """Pre-LayerNorm layer with FAVOR+ as Choromanski et al. 2021 write it down."""
    normed_1PW = layer.attention_norm(x_1PW)
    q_1HPK, k_1HPK, v_1HPK = (
        linear(normed_1PW).unflatten(2, (layer.heads, -1)).transpose(1, 2)
        for linear in (layer.query, layer.key, layer.value)
    )
    q_1HPM = softmax_features(q_1HPK, layer.projection_MK, (3,))
    k_1HPM = softmax_features(k_1HPK, layer.projection_MK, (1, 2, 3))
    normaliser_1HP = (q_1HPM * k_1HPM.sum(2, keepdim=True)).sum(3)
    attended_1HPK = q_1HPM @ (k_1HPM.mT @ v_1HPK) / normaliser_1HP[..., None]
    x_1PW = x_1PW + layer.attention_out(attended_1HPK.transpose(1, 2).flatten(2))
    return x_1PW + layer.ffn_out(F.gelu(layer.ffn_in(layer.ffn_norm(x_1PW))))


def softmax_features(z_1HPK: Tensor, projection_MK: Tensor, stabilised: tuple[int, ...]) -> Tensor:
    """Positive random features (1, H, P, M), the exponent's maximum over the given dimensions taken off."""
    root = z_1HPK.shape[3] ** -0.25
    exponent_1HPM = (root * z_1HPK) @ projection_MK.T
    half_norm_1HP1 = 0.5 * root**2 * z_1HPK.square().sum(3, keepdim=True)
    largest = exponent_1HPM.amax(stabilised, keepdim=True)
    return len(projection_MK) ** -0.5 * (torch.exp(exponent_1HPM - half_norm_1HP1 - largest) + 1e-4)


def torch_layer(ours: EncoderLayer) -> nn.TransformerEncoderLayer:
    """torch's layer with the weights of ours, on their device."""
    width = ours.attention_out.in_features
    theirs = nn.TransformerEncoderLayer(
        width, ours.heads, dim_feedforward=ours.ffn_in.out_features, dropout=0.0, batch_first=True
    )
    attention = theirs.self_attn
    pairs = [
        (attention.in_proj_weight, ours.qkv.weight),
        (attention.in_proj_bias, ours.qkv.bias),
        (attention.out_proj.weight, ours.attention_out.weight),
        (attention.out_proj.bias, ours.attention_out.bias),
        (theirs.linear1.weight, ours.ffn_in.weight),
        (theirs.linear1.bias, ours.ffn_in.bias),
        (theirs.linear2.weight, ours.ffn_out.weight),
        (theirs.linear2.bias, ours.ffn_out.bias),
        (theirs.norm1.weight, ours.attention_norm.weight),
        (theirs.norm1.bias, ours.attention_norm.bias),
        (theirs.norm2.weight, ours.ffn_norm.weight),
        (theirs.norm2.bias, ours.ffn_norm.bias),
    ]
    with torch.no_grad():
        for target, source in pairs:
            target.copy_(source)
    return theirs.to(ours.qkv.weight.device).eval()
