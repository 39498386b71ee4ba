"""The kernels at the published model's shape, each against the best there is and against the device's roofline.

Needs cellfoundry_kernels, cellfoundry_model, torch, triton and numpy only. Without an NVIDIA GPU the CPU's paths are
measured, every kernel is compiled for two GPUs and reported, and what only a GPU can measure says so. On a CPU
attention has 4 heads in place of 12: heads are independent, and the rate is the same in a third of the time.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch

from cellfoundry_bench.kernels.attention import (
    attention_batches,
    attention_rows,
    unmeasured_attention_rows,
)
from cellfoundry_bench.kernels.curves import all_curves
from cellfoundry_bench.kernels.model import (
    bf16_row,
    encoder_layer_rows,
    packed_against_padded_row,
    training_step_rows,
)
from cellfoundry_bench.kernels.ops import favor_rows, mask_rows, value_embedding_rows
from cellfoundry_bench.kernels.timing import measured_roofline
from cellfoundry_bench.ragged import real_lengths
from cellfoundry_bench.results import Row, SuiteResult


def run() -> SuiteResult:
    """Measure on the GPU in bf16 where there is one, else on the CPU in float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cuda = device == "cuda"
    roofline = measured_roofline() if cuda else None
    rows: list[Row] = []
    for what, lengths in attention_batches(device):
        rows += attention_rows(lengths, what, device, heads=12 if cuda else 4)
    rows += [] if cuda else unmeasured_attention_rows()
    # So many values that a GPU takes longer for them than the host for its launches.
    rows += value_embedding_rows(512_000 if cuda else 16_000, device, roofline)
    rows += favor_rows(8 if cuda else 1, device, roofline)
    rows += mask_rows(256 if cuda else 32, device)
    rows += encoder_layer_rows(64, device, roofline)
    rows += training_step_rows(16, device, roofline)
    if not cuda:
        rows += [packed_against_padded_row(preset, cell_lengths(64), rounds=3) for preset in ("tiny", "3m")]
        rows += [bf16_row(preset, cell_lengths(16), rounds=3) for preset in ("tiny", "3m", "10m")]
    rows += _compile_rows()
    return SuiteResult(rows, all_curves(device, roofline))


def _compile_rows() -> list[Row]:
    """The compile report, where triton exists (on Linux)."""
    if importlib.util.find_spec("triton") is None:
        return []
    from cellfoundry_bench.kernels.compile_report import compile_rows

    return compile_rows()


def cell_lengths(cells: int) -> np.ndarray:
    """Tokens of real cells of the bundled donor, or of its length distribution where it cannot be read."""
    try:
        from cellfoundry_bench.real_cells import real_cells

        return np.diff(real_cells(cells).indptr) + 2
    except ModuleNotFoundError:
        return real_lengths(cells) + 2
