"""The step of a run on one process, without Ray and DeepSpeed: rates, breakdown, memory, and a padded twin beside it.

Needs torch, numpy, safetensors (and triton on a GPU); comparing memory with the plan needs pydantic besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from cellfoundry_bench.measure import Comparison, compare, cpu_clock, wall_clock
from cellfoundry_bench.ragged import synthetic_counts
from cellfoundry_bench.real_cells import real_cells
from cellfoundry_bench.results import Row
from cellfoundry_bench.training.padded import PaddedModel
from cellfoundry_bench.training.plain_engine import RATE, PlainEngine
from cellfoundry_data.batch import CellBatch
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.presets import PRESETS
from cellfoundry_training.batches import CellTensors, PrefetchedBatches
from cellfoundry_training.objective import Masking
from cellfoundry_training.peak_flops import peak_flops
from cellfoundry_training.step import GlobalStep, StepOutcome
from cellfoundry_training.step_clock import PHASES, StepClock

NO_GPU = "needs a GPU"


@dataclass(frozen=True)
class Work:
    """What a step is measured on.

    Attributes:
        preset: name of the model.
        precision: of weights and activations.
        device: cpu or cuda.
        batches: cells of a step, one batch after another.
        origin: what the cells are, in words.
    """

    preset: str
    precision: str
    device: torch.device
    batches: list[CellBatch]
    origin: str

    @property
    def note(self) -> str:
        """What a reader must know beside a number."""
        return (
            f"{self.preset}, {len(self.batches[0])} {self.origin} a step, {self.precision} on {self.device.type}, "
            "optimizer included, cells from memory"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def model(self) -> CellModel:
        """The same at every call."""
        torch.manual_seed(0)
        return CellModel(PRESETS[self.preset]).to(self.device)


class _EndlessCells:
    """Batches from memory in the shape of the loader's dataset: what the step costs apart from reading."""

    def __init__(self, batches: list[CellBatch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[CellBatch]:
        return iter(self._batches)

    def state_dict(self) -> dict[str, Any]:
        """There is nothing to go on from."""
        return {}


def work_for(preset: str, cells: int, device: torch.device, precision: str, batches: int = 4) -> Work:
    """Cells of the bundled donor, or synthetic ones where the packages to read it are missing."""
    try:
        drawn, origin = real_cells(cells * batches), "real cells"
    except ModuleNotFoundError:
        indptr, gene_ids, counts = synthetic_counts(cells * batches, PRESETS[preset].n_genes)
        rows = np.arange(cells * batches)
        drawn = CellBatch(indptr.numpy(), gene_ids.numpy().astype(np.int32), counts.numpy(), rows)
        origin = "synthetic cells of real lengths"
    parts = [drawn.select(part) for part in np.split(np.arange(cells * batches), batches)]
    return Work(preset, precision, device, parts, origin)


class Stepper:
    """Takes steps on ``work`` one after another, as a rank of a run does."""

    def __init__(self, work: Work, model: nn.Module) -> None:
        config = PRESETS[work.preset]
        self.clock = StepClock(work.device)
        self.step_number = 0
        engine = PlainEngine(model, work.dtype)
        masking = Masking(config.n_genes, config.mask_token_id)
        self._step = GlobalStep(engine, config, masking, self.clock)

    def take(self, batches: Iterator[CellTensors]) -> StepOutcome:
        """One step on the next batch."""
        self.step_number += 1
        self.clock.start("data")
        return self._step.run([next(batches)], self.step_number, RATE)


def step_rows(work: Work, steps: int) -> list[Row]:
    """Medians over ``steps`` steps, after two that are not counted: rates, MFU, phases, data wait, memory."""
    stepper = Stepper(work, work.model())
    cells = cast("Any", _EndlessCells(work.batches))
    seconds, outcomes, phases = [], [], []
    on_cuda = work.device.type == "cuda"
    with PrefetchedBatches(cells, work.device) as batches:
        for number in range(steps + 2):
            if number == 2 and on_cuda:
                torch.cuda.reset_peak_memory_stats()
            started = wall_clock()
            outcome = stepper.take(batches)
            if number >= 2:
                seconds.append(wall_clock() - started)
                outcomes.append(outcome)
                phases.append(stepper.clock.seconds())
    spent, peak = median(seconds), peak_flops(work.device, "bf16" if work.precision == "bf16" else "fp32")
    flops = median(outcome.flops for outcome in outcomes)
    wait = median(each["data"] / second for each, second in zip(phases, seconds, strict=True))
    return [
        Row("training step, cells", len(work.batches[0]) / spent, "cells/s", note=work.note),
        Row("training step, encoder tokens", median(each.tokens for each in outcomes) / spent, "tokens/s"),
        Row(
            "training step, MFU",
            flops / spent / peak.per_s,
            f"of {peak.per_s / 1e12:,.2f} TFLOP/s",
            bar=0.45 if on_cuda else None,
            note=peak.source,
        ),
        *(Row(f"step: {phase}", median(each[phase] for each in phases) * 1e3, "ms") for phase in PHASES),
        Row("data wait", wait, "of a step", bar=0.02, bar_is="at most", note="prefetched from memory"),
        memory_row(work),
    ]


def memory_row(work: Work) -> Row:
    """How far the most memory that tensors took since the last reset is from the plan's figure."""
    what, unit, bar = "peak memory, distance from the plan", "of the plan", 0.1
    if work.device.type != "cuda":
        return Row(what, None, unit, bar=bar, bar_is="at most", note=NO_GPU)
    try:
        planned = planned_bytes(work)
    except ModuleNotFoundError as error:
        return Row(what, None, unit, bar=bar, bar_is="at most", note=f"the plan needs {error.name}")
    taken = torch.cuda.max_memory_allocated()
    note = f"{taken / 1e9:,.1f} GB of tensors, {planned / 1e9:,.1f} GB planned"
    return Row(what, abs(taken / planned - 1), unit, bar=bar, bar_is="at most", note=note)


def planned_bytes(work: Work) -> float:
    """What `cellfoundry train plan` says that tensors take on one rank."""
    from cellfoundry_training.config import load_config
    from cellfoundry_training.plan.estimate import count_parameters
    from cellfoundry_training.plan.memory import rank_memory
    from cellfoundry_training.plan.workload import average_workload

    settings = [f"precision={work.precision}", "zero_stage=0", "activation_checkpointing=false"]
    config, model = load_config(work.preset, settings), PRESETS[work.preset]
    lengths = [length for batch in work.batches for length in np.diff(batch.indptr).tolist()]
    average = average_workload(config, lengths, model.n_genes)
    memory = rank_memory(config, model, average, count_parameters(model), len(work.batches[0]), ranks=1)
    return memory.total - memory.context


def padded_row(work: Work, rounds: int) -> Row:
    """Steps of the model on packed cells against its padded twin, alternating on the same cells."""
    model = work.model()
    twin = Stepper(work, PaddedModel(model))
    ours, batch = Stepper(work, model), [CellTensors.of(work.batches[0], work.device)]
    clock = wall_clock if work.device.type == "cuda" else cpu_clock
    timed: Comparison = compare(
        lambda: ours.take(iter(batch)), lambda: twin.take(iter(batch)), rounds=rounds, clock=clock
    )
    return timed.rate_row(
        "training step",
        len(work.batches[0]),
        "cells/s" if clock is wall_clock else "cells/CPU-s",
        "the same model in padded batches, torch SDPA and plain torch",
        bar=2.0 if work.device.type == "cuda" else None,
        note=work.note,
    )
