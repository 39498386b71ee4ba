"""A model as a CPU computes it fastest: the same numbers as ``CellModel``, from packed weights and without gradients.

In bfloat16 only matrix products and attention are: the streams that layers add to, and the norms, stay float32.

Legend: N tokens over all cells, D width, H heads, K channels of a head, R rows of the decoder, I heads x channels.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from cellfoundry_kernels.favor.cpu import favor_attention_without_grad
from cellfoundry_kernels.varlen.cpu import varlen_attention_without_grad
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.cell_rows import CellRows
from cellfoundry_model.decoder import DecoderLayer
from cellfoundry_model.encoder import EncoderLayer
from cellfoundry_model.packed_linear import PackedLinear


def packed_for_cpu(model: CellModel, dtype: torch.dtype) -> CellModel:
    """``model`` with an encoder and a decoder for inference in ``dtype`` (float32 or bfloat16, see ``can_pack``).

    Embeddings and norms are shared with ``model``, which stays as it is; the weights of layers are copied, those of the
    decoder when it first runs.
    """
    packed = copy.copy(model)
    # A shallow copy shares the table of submodules, and with it every later change.
    packed._modules = dict(model._modules)
    packed.encoder = _PackedEncoder(model, dtype)  # type: ignore[assignment]
    packed.decoder = _PackedDecoder(model, dtype)  # type: ignore[assignment]
    return packed


class _PackedEncoder(nn.Module):
    """As ``Encoder``."""

    def __init__(self, model: CellModel, dtype: torch.dtype) -> None:
        super().__init__()
        self._layers = [
            _PackedEncoderLayer(cast(EncoderLayer, layer), dtype) for layer in model.encoder.layers
        ]
        self.norm = model.encoder.norm

    def forward(self, x_ND: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        for layer in self._layers:
            x_ND = layer(x_ND, cu_seqlens, max_seqlen)
        return self.norm(x_ND)


class _PackedEncoderLayer:
    """As ``EncoderLayer``."""

    def __init__(self, layer: EncoderLayer, dtype: torch.dtype) -> None:
        self._dtype, self._heads = dtype, layer.heads
        self._qkv = PackedLinear(layer.qkv, dtype)
        self._attention_out = PackedLinear(layer.attention_out, dtype)
        self._ffn_in = PackedLinear(layer.ffn_in, dtype)
        self._ffn_out = PackedLinear(layer.ffn_out, dtype)
        self._attention_norm, self._ffn_norm = layer.attention_norm, layer.ffn_norm

    def __call__(self, x_ND: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        qkv_N3HK = self._qkv(x_ND.to(self._dtype)).unflatten(1, (3, self._heads, -1))
        q_NHK, k_NHK, v_NHK = qkv_N3HK.unbind(1)
        scale = q_NHK.shape[2] ** -0.5
        attended_NHK = varlen_attention_without_grad(q_NHK, k_NHK, v_NHK, cu_seqlens, scale)
        x_ND = self._attention_norm(x_ND + self._attention_out(attended_NHK.flatten(1)))
        return self._ffn_norm(x_ND + self._ffn_out(self._ffn_in(x_ND.to(self._dtype), "relu")))


class _PackedDecoder(nn.Module):
    """As ``Decoder``, for all rows."""

    def __init__(self, model: CellModel, dtype: torch.dtype) -> None:
        super().__init__()
        self._given, self._dtype = list(model.decoder.layers), dtype
        self.norm = model.decoder.norm

    @cached_property
    def _layers(self) -> list[_PackedDecoderLayer]:
        return [_PackedDecoderLayer(cast(DecoderLayer, layer), self._dtype) for layer in self._given]

    def forward(self, x_RW: Tensor, rows: CellRows) -> Tensor:
        for layer in self._layers:
            x_RW = layer(x_RW, rows)
        return self.norm(x_RW)


class _PackedDecoderLayer:
    """As ``DecoderLayer``, for all rows."""

    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        self._dtype, self._heads, self._projection_MK = dtype, layer.heads, layer.projection_MK
        self._query, self._key, self._value = (
            PackedLinear(linear, dtype) for linear in (layer.query, layer.key, layer.value)
        )
        self._attention_out = PackedLinear(layer.attention_out, dtype)
        self._ffn_in = PackedLinear(layer.ffn_in, dtype)
        self._ffn_out = PackedLinear(layer.ffn_out, dtype)
        self._attention_norm, self._ffn_norm = layer.attention_norm, layer.ffn_norm

    def __call__(self, x_RW: Tensor, rows: CellRows) -> Tensor:
        normed_RW = self._attention_norm(x_RW).to(self._dtype)
        q_CPHK, k_CPHK, v_CPHK = (
            rows.spread(linear(normed_RW)).unflatten(2, (self._heads, -1))
            for linear in (self._query, self._key, self._value)
        )
        attended_CPHK = favor_attention_without_grad(q_CPHK, k_CPHK, v_CPHK, self._projection_MK)
        attended_RI = rows.collect(attended_CPHK.flatten(2))
        x_RW = x_RW + self._attention_out(attended_RI)
        return x_RW + self._ffn_out(self._ffn_in(self._ffn_norm(x_RW).to(self._dtype), "gelu"))
