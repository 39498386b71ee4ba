"""The peer of the embedding suite: one cell at a time through torch's own transformer layers, in float32.

That is how the official embedding script works: a dense vector over all positions is built for each cell, its
positive entries are gathered, and `torch.nn.TransformerEncoderLayer` runs on a batch of one with a padding
mask. Written from the architecture's description; it takes the weights of our model, so results must agree.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.encoder import EncoderLayer


class OneCellLoop:
    """Cell embeddings (pool "all", T = 4) of raw counts, one cell a forward pass."""

    def __init__(self, model: CellModel) -> None:
        self._model = model.eval()
        self._layers = [
            torch_layer(layer) for layer in model.encoder.layers if isinstance(layer, EncoderLayer)
        ]

    @torch.no_grad()
    def encode(self, batch: CellBatch) -> npt.NDArray[np.float32]:
        """(cells, 4 x width), in the batch's order."""
        cells = range(len(batch))
        return np.concatenate([self._one_cell(*self._dense(batch, cell)).numpy() for cell in cells])

    def _dense(self, batch: CellBatch, cell: int) -> tuple[Tensor, Tensor]:
        """Values over all positions, (1, P), and the positions that hold a token, (1, n), T and S last."""
        entries = slice(batch.indptr[cell], batch.indptr[cell + 1])
        counts = np.zeros(self._model.config.n_positions, np.float32)
        counts[batch.gene_ids[entries]] = batch.counts[entries]
        total = counts.sum()
        values = np.log1p(counts / total * 1e4)
        values[-2:] = 4.0, np.log10(total)
        return torch.from_numpy(values)[None], torch.from_numpy(np.flatnonzero(values > 0))[None]

    def _one_cell(self, value_1P: Tensor, position_1n: Tensor) -> Tensor:
        model, value_1n = self._model, value_1P.gather(1, position_1n)
        embedding = model.value_embedding
        hidden_1nB = F.leaky_relu(embedding.hidden(value_1n[..., None]), 0.1)
        weight_1nB = F.softmax(embedding.mix(hidden_1nB) + embedding.bin_alpha * hidden_1nB, dim=-1)
        x_1nD = weight_1nB @ embedding.bins_BD + model.position_embedding(position_1n)
        padding_1n = torch.zeros_like(position_1n, dtype=torch.bool)
        for layer in self._layers:
            x_1nD = layer(x_1nD, src_key_padding_mask=padding_1n)
        x_1nD = model.encoder.norm(x_1nD)
        genes_1gD = x_1nD[:, :-2]
        return torch.cat([x_1nD[:, -1], x_1nD[:, -2], genes_1gD.amax(1), genes_1gD.mean(1)], dim=1)


def torch_layer(ours: EncoderLayer) -> nn.TransformerEncoderLayer:
    """torch's layer with the weights of ours."""
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
    return theirs.eval()
