"""Useful floating point operations of a forward pass over ragged cells: 2 a multiply-add, products only.

Elementwise work (norms, activations, exponentials) is left out, as is usual for model FLOPs utilisation (Chowdhery
et al. 2022, "PaLM", appendix B). A backward pass takes twice the products, and 2.5 times where attention recomputes
its logits, which no utilisation should credit: a training step counts three times the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from cellfoundry_kernels import MaskedCells
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.decoder_context import DecoderContext


def encoder_flops(config: ModelConfig, lengths: Sequence[int]) -> int:
    """Value embedding and encoder over cells of these token counts (T and S included)."""
    tokens, squares = sum(lengths), sum(length * length for length in lengths)
    width, inner, bins = config.encoder_width, config.encoder_ffn_width, config.bins
    embedding = 2 * tokens * bins * (1 + bins + width)
    projections = 2 * tokens * (4 * width * width + 2 * width * inner)
    return embedding + config.encoder_depth * (projections + 4 * width * squares)


def decoder_flops(
    config: ModelConfig, cells: int, entered: int, asked: int | None = None, rows: int | None = None
) -> int:
    """Decoder over all positions of ``cells`` cells, or a sample of them, and the expression head.

    Args:
        config: the model's sizes.
        cells: how many.
        entered: encoder tokens and masked positions that are projected into the decoder, over all cells; the
            table of zero genes comes once on top.
        asked: positions that the last layer computes, over all cells; None for all.
        rows: positions that the other layers compute, over all cells, where they are a sample: each is then projected
            into the decoder on its own, ``entered`` and the table do not count. None for all positions.
    """
    positions = cells * config.n_positions if rows is None else rows
    wanted = positions if asked is None else asked
    projected = entered + config.n_positions if rows is None else rows
    entry = 2 * projected * config.encoder_width * config.decoder_width
    layers = (config.decoder_depth - 1) * _decoder_layer(config, positions, positions)
    last = _decoder_layer(config, positions, wanted)
    return entry + layers + last + 2 * wanted * config.decoder_width


def _decoder_layer(config: ModelConfig, keys: int, queries: int) -> int:
    """Keys and values at ``keys`` positions, everything else at ``queries``; see ``favor_attention``."""
    width, inner, features = config.decoder_width, config.decoder_ffn_width, config.favor_features
    attention = config.decoder_heads * config.decoder_head_dim
    projections = 2 * width * attention * (2 * keys + 2 * queries)
    favor = config.decoder_heads * 2 * features * (2 * config.decoder_head_dim + 1) * (keys + queries)
    return projections + favor + 4 * width * inner * queries


def forward_flops(config: ModelConfig, masked: MaskedCells, context: DecoderContext | None = None) -> int:
    """Of ``CellModel.forward`` on masked cells; reads their lengths, so it waits for the device."""
    lengths = masked.cu_seqlens.diff().tolist()
    hidden_X = masked.mask_value_X == config.mask_token_id
    tokens, asked, rows = sum(lengths), len(masked.mask_position_X), None
    if context is not None:
        rows = tokens + int((hidden_X | (masked.mask_value_X <= 0)).sum()) + len(context.position_S)
    decoder = decoder_flops(config, len(lengths), tokens + int(hidden_X.sum()), asked, rows)
    return encoder_flops(config, lengths) + decoder


def training_flops(config: ModelConfig, masked: MaskedCells, context: DecoderContext | None = None) -> int:
    """Of a forward and a backward pass: three times the forward pass. What activation checkpointing computes a
    second time is not counted.
    """
    return 3 * forward_flops(config, masked, context)
