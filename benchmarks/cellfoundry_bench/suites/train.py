"""One optimizer step of the `tiny` preset on one process, without Ray and DeepSpeed, and where its time goes.

Needs the kernels and the model (torch, numpy, safetensors). Cells are real where the data layer's packages are
installed; elsewhere synthetic ones of real lengths, and the rows say so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from cellfoundry_bench.measure import wall_clock
from cellfoundry_bench.ragged import synthetic_counts
from cellfoundry_bench.real_cells import real_cells
from cellfoundry_bench.results import Row, SuiteResult
from cellfoundry_kernels import MaskedCells, mask_cells, masked_mse
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.presets import PRESETS

PRESET = "tiny"


@dataclass(frozen=True)
class Batch:
    """Raw cells in CSR form on the device, and what they are."""

    indptr: Tensor
    gene_ids: Tensor
    counts: Tensor
    cell_ids: Tensor
    origin: str


@dataclass
class StepTimes:
    """Seconds of each part, one entry a step, and the encoder tokens of each step."""

    mask: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    optimizer: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def run() -> SuiteResult:
    """Measure on the GPU where there is one, else on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = load_batch(cells=64 if device == "cuda" else 8, device=device)
    return SuiteResult(step_rows(batch, steps=5, device=device))


def load_batch(cells: int, device: str) -> Batch:
    """Cells of the bundled donor, or synthetic ones where the packages to read it are missing."""
    try:
        donor = real_cells(cells)
    except ModuleNotFoundError:
        indptr, gene_ids, counts = synthetic_counts(cells, PRESETS[PRESET].n_genes)
        cell_ids, origin = torch.arange(cells), "synthetic cells of real lengths"
    else:
        indptr, gene_ids, counts, cell_ids = map(
            torch.from_numpy, (donor.indptr, donor.gene_ids, donor.counts, donor.row_ids)
        )
        origin = "real cells"
    return Batch(indptr.to(device), gene_ids.to(device), counts.to(device), cell_ids.to(device), origin)


def step_rows(batch: Batch, steps: int, device: str) -> list[Row]:
    """Medians over ``steps`` steps on the same cells, each with its own masks."""
    times = time_steps(batch, steps, device)
    parts = {"mask": times.mask, "forward": times.forward, "backward": times.backward}
    parts["optimizer"] = times.optimizer
    step = median(map(sum, zip(*parts.values(), strict=True)))
    cells = len(batch.indptr) - 1
    note = f"{PRESET}, {cells} {batch.origin} a step, float32 on {device}, no data loading"
    return [
        Row("training step, cells", cells / step, "cells/s", note=note),
        Row("training step, encoder tokens", median(times.tokens) / step, "tokens/s", note=note),
        *(Row(f"step: {part}", median(seconds) * 1e3, "ms") for part, seconds in parts.items()),
    ]


def time_steps(batch: Batch, steps: int, device: str) -> StepTimes:
    """Run one step that is not counted, then ``steps`` that are."""
    torch.manual_seed(0)
    model = CellModel(PRESETS[PRESET]).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    times = StepTimes()
    for step in range(steps + 1):
        started = wall_clock()
        masked = _mask(batch, model.config.n_genes, step)
        masked_at = wall_clock()
        loss = masked_mse(model(masked), masked.target_X)
        forward_at = wall_clock()
        loss.backward()
        backward_at = wall_clock()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = wall_clock()
        if step:
            times.mask.append(masked_at - started)
            times.forward.append(forward_at - masked_at)
            times.backward.append(backward_at - forward_at)
            times.optimizer.append(done - backward_at)
            times.tokens.append(len(masked.value_N))
    return times


def _mask(batch: Batch, n_genes: int, step: int) -> MaskedCells:
    return mask_cells(
        batch.indptr, batch.gene_ids, batch.counts, batch.cell_ids, n_genes=n_genes, seed=0, step=step
    )
