"""The model of the published shape: one encoder layer, a whole training step; on a CPU packed against padded, and bf16.

Shape legend: N tokens over all cells, C cells, L longest cell, D width, P positions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cellfoundry_bench.kernels.bars import not_measured
from cellfoundry_bench.kernels.ops import masking_seconds
from cellfoundry_bench.kernels.timing import ROUNDS, Roofline, compare_on, median_device_seconds
from cellfoundry_bench.one_cell_loop import torch_layer
from cellfoundry_bench.ragged import cu_seqlens_of, real_lengths, synthetic_counts
from cellfoundry_bench.results import Row
from cellfoundry_kernels import MaskedCells, mask_cells, masked_mse
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.encoder import Encoder, EncoderLayer
from cellfoundry_model.flops import decoder_flops, encoder_flops
from cellfoundry_model.presets import PRESETS

LAYER, STEP = "encoder layer, 100m, forward and backward", "training step, 100m"


def encoder_layer_rows(cells: int, device: str, roofline: Roofline | None) -> list[Row]:
    """One layer, forward and backward, in bf16: model FLOPs utilisation against the measured matrix product."""
    if roofline is None:
        return [not_measured(f"{LAYER}, MFU", "of bf16 products")]
    config, lengths = PRESETS["100m"], real_lengths(cells) + 2
    layer = EncoderLayer(config).to(device, torch.bfloat16)
    x_ND = torch.randn(
        int(lengths.sum()), config.encoder_width, device=device, dtype=torch.bfloat16, requires_grad=True
    )
    cu_seqlens, longest = cu_seqlens_of(lengths, device), int(lengths.max())

    def work() -> None:
        layer(x_ND, cu_seqlens, longest).backward(x_ND.detach())

    spent = median_device_seconds(work, device)
    tokens, squares = float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
    width = config.encoder_width
    flops = 3 * (2 * tokens * (4 * width**2 + 2 * width * config.encoder_ffn_width) + 4 * width * squares)
    note = f"{cells} cells of real lengths, {tokens:,.0f} tokens, bf16"
    return [
        Row(f"{LAYER}, time", spent * 1e3, "ms", note=note),
        Row(f"{LAYER}, MFU", flops / spent / roofline.flops, "of bf16 products", note=note),
    ]


def training_step_rows(cells: int, device: str, roofline: Roofline | None) -> list[Row]:
    """Forward, loss and backward of ``cells`` masked cells in bf16, and the share of ``mask_cells`` in it."""
    mask_row = not_measured("mask_cells, share of a training step", "of the step", bar=0.05, bar_is="at most")
    if roofline is None:
        return [not_measured(f"{STEP}, MFU", "of bf16 products"), mask_row]
    config = PRESETS["100m"]
    model = CellModel(config).to(device, torch.bfloat16)
    indptr, gene_ids, counts = (tensor.to(device) for tensor in synthetic_counts(cells, config.n_genes))
    cell_ids = torch.arange(cells, device=device)
    masked = mask_cells(indptr, gene_ids, counts, cell_ids, n_genes=config.n_genes, seed=0, step=0)

    def work() -> None:
        masked_mse(model(masked), masked.target_X).backward()
        model.zero_grad(set_to_none=True)

    spent = median_device_seconds(work, device)
    masking = masking_seconds(cells, device)
    note = f"{cells} cells of real lengths, bf16, optimizer not included"
    return [
        Row(f"{STEP}, cells", cells / (spent + masking), "cells/s", note=note),
        Row(f"{STEP}, MFU", 3 * step_flops(masked) / spent / roofline.flops, "of bf16 products", note=note),
        replace(mask_row, value=masking / (spent + masking), note=note),
    ]


def step_flops(masked: MaskedCells) -> int:
    """FLOPs of a forward pass of the published shape over masked cells."""
    config = PRESETS["100m"]
    lengths = masked.cu_seqlens.diff().tolist()
    hidden = int((masked.mask_value_X == config.mask_token_id).sum())
    decoder = decoder_flops(config, len(lengths), sum(lengths) + hidden, len(masked.mask_position_X))
    return encoder_flops(config, lengths) + decoder


def packed_against_padded_row(preset: str, lengths: np.ndarray, rounds: int = ROUNDS) -> Row:
    """The encoder over packed cells against torch's own layers on the batch padded to the longest cell; CPU."""
    encoder, x_ND, cu_seqlens, longest = _packed_encoder(preset, lengths)
    layers = [torch_layer(layer) for layer in encoder.layers if isinstance(layer, EncoderLayer)]
    is_token_CL = torch.arange(longest) < cu_seqlens.diff().long()[:, None]
    padded_CLD = x_ND.new_zeros(len(lengths), longest, x_ND.shape[1])
    padded_CLD[is_token_CL] = x_ND

    def packed() -> Tensor:
        return encoder(x_ND, cu_seqlens, longest)

    def padded() -> Tensor:
        y_CLD = padded_CLD
        for layer in layers:
            y_CLD = layer(y_CLD, src_key_padding_mask=~is_token_CL)
        return encoder.norm(y_CLD)

    with torch.inference_mode():
        torch.testing.assert_close(padded()[is_token_CL], packed(), rtol=0, atol=1e-4)
        timed = compare_on("cpu", packed, padded, rounds)
    note = f"{_cells_note(lengths)}, float32"
    return timed.rate_row(
        f"encoder, {preset}", len(lengths), "cells/s", "torch layers on the padded batch", bar=1.5, note=note
    )


def bf16_row(preset: str, lengths: np.ndarray, rounds: int = ROUNDS) -> Row:
    """The packed encoder in bf16, under autocast as the Embedder runs it, against itself in float32; CPU.

    Without a bar: the gain is what the processor's instructions for bf16 give.
    """
    encoder, x_ND, cu_seqlens, longest = _packed_encoder(preset, lengths)

    def exact() -> Tensor:
        return encoder(x_ND, cu_seqlens, longest)

    def low() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return encoder(x_ND, cu_seqlens, longest)

    with torch.inference_mode():
        expected_ND = exact()
        error_ND = low().float() - expected_ND
        timed = compare_on("cpu", low, exact, rounds)
    error = float(error_ND.square().mean().sqrt() / expected_ND.square().mean().sqrt())
    cosine = float(torch.cosine_similarity(expected_ND + error_ND, expected_ND).min())
    note = (
        f"{_cells_note(lengths)}; relative RMS error {error:.1e}, cosine of every token at least {cosine:.6f}"
    )
    return timed.rate_row(f"encoder in bf16, {preset}", len(lengths), "cells/s", "ours in float32", note=note)


def _packed_encoder(preset: str, lengths: np.ndarray) -> tuple[Encoder, Tensor, Tensor, int]:
    """A preset's encoder, random tokens (N, D) of cells of these lengths, their bounds and the longest."""
    torch.manual_seed(0)
    encoder = CellModel(PRESETS[preset]).eval().encoder
    x_ND = torch.randn(int(lengths.sum()), PRESETS[preset].encoder_width)
    return encoder, x_ND, cu_seqlens_of(lengths, "cpu"), int(lengths.max())


def _cells_note(lengths: np.ndarray) -> str:
    cells = f"{len(lengths)} real cells, {lengths.min()} to {lengths.max()} tokens"
    return f"{cells}, {torch.get_num_threads()} threads"
