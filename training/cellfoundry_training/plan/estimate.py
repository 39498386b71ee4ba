"""A run's memory, time and cost from its configuration and the accelerator it would run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cellfoundry_model.architecture import CellModel
from cellfoundry_model.config import ModelConfig
from cellfoundry_training.config import PretrainConfig
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.plan.accelerators import Accelerator
from cellfoundry_training.plan.memory import RankMemory, rank_memory
from cellfoundry_training.plan.workload import Workload, average_workload


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        parameters: of the model.
        work: of an average cell.
        memory: of one rank.
        fits: whether that is less than the device has.
        largest_micro_batch: cells that a rank could put through the model at once; 0 if not even one fits.
        cells_per_step: of all ranks.
        steps: optimizer steps.
        step_seconds: of one.
        cells: of all steps.
        flops: useful FLOPs of the run.
        seconds: wall time without failures, evaluations and saves.
        gpu_hours: of all devices.
    """

    parameters: int
    work: Workload
    memory: RankMemory
    fits: bool
    largest_micro_batch: int
    cells_per_step: float
    steps: int
    step_seconds: float
    cells: float
    flops: float
    seconds: float
    gpu_hours: float


def plan_run(
    config: PretrainConfig,
    expressed: Sequence[int],
    n_genes: int,
    *,
    cells: float,
    gpus: int,
    chip: Accelerator,
    mfu: float,
) -> Plan:
    """Plan ``cells`` cells of training on ``gpus`` devices.

    Args:
        config: the run; its ``workers`` and budget do not count here.
        expressed: numbers of expressed genes that stand for the cells.
        n_genes: genes of the vocabulary.
        cells: cells of all steps, repeats counted.
        gpus: ranks.
        chip: the device.
        mfu: useful FLOPs over the device's peak.

    Raises:
        TrainingError: a number out of range.
    """
    for name, number in (("cells", cells), ("gpus", gpus)):
        if not number >= 1:
            raise TrainingError(f"{name} is {number}: give at least 1")
    if not 0 < mfu <= 1:
        raise TrainingError(f"mfu is {mfu}: give a share above 0 and at most 1")
    model = config.architecture(n_genes)
    work, parameters = average_workload(config, expressed, n_genes), count_parameters(model)
    at_once = _micro_batch_cells(config, work)

    def memory_of(micro_batch: float) -> RankMemory:
        return rank_memory(config, model, work, parameters, micro_batch, gpus)

    memory, fixed = memory_of(at_once), memory_of(0).total
    per_cell = (memory.total - fixed) / at_once
    cells_per_step = at_once * gpus * config.gradient_accumulation
    peak = chip.bf16_flops if config.precision == "bf16" else chip.fp32_flops
    step_seconds = cells_per_step * work.flops / (gpus * peak * mfu)
    steps = max(1, round(cells / cells_per_step))
    return Plan(
        parameters=parameters,
        work=work,
        memory=memory,
        fits=memory.total <= chip.memory_bytes,
        largest_micro_batch=max(0, int((chip.memory_bytes - fixed) / per_cell)),
        cells_per_step=cells_per_step,
        steps=steps,
        step_seconds=step_seconds,
        cells=steps * cells_per_step,
        flops=steps * cells_per_step * work.flops,
        seconds=steps * step_seconds,
        gpu_hours=steps * step_seconds * gpus / 3600,
    )


def _micro_batch_cells(config: PretrainConfig, work: Workload) -> float:
    """Cells a rank puts through the model at once, on average."""
    if config.batch_cells is not None:
        return float(config.batch_cells)
    # A cell costs its genes, before some are masked, and what the decoder adds (``cell_tokens``).
    return (config.batch_tokens or 0) / (work.expressed + config.cell_tokens)


def count_parameters(model: ModelConfig) -> int:
    """Trained numbers of a CellModel of this shape; nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CellModel(model).parameters())
