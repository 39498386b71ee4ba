"""One optimizer step on the global batch: mask, forward, backward, update; the same on one process and on many ranks.

Needs torch, the kernels and the model only: engines are handed in, so that a machine without Ray and DeepSpeed can
measure the very step that a run takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from cellfoundry_kernels import MaskedCells
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.decoder_context import DecoderContext
from cellfoundry_model.flops import training_flops
from cellfoundry_training.batches import CellTensors
from cellfoundry_training.objective import Masking, share_of_global_loss
from cellfoundry_training.step_clock import StepClock


class Engine(Protocol):
    """What a step needs of a DeepSpeed engine, or of what stands in for one."""

    optimizer: Any

    def __call__(self, masked: MaskedCells, context: DecoderContext | None) -> Tensor:
        """The model's predictions at the chosen positions, its decoder over all positions or a sample of the zeros."""

    def backward(self, loss: Tensor) -> Any:
        """Add the gradients of ``loss`` divided by the number of micro-batches of a step; averaged over ranks by the
        last of them.
        """

    def step(self) -> Any:
        """After the last micro-batch: clip, update, and forget the gradients; an update whose gradient norm is not
        finite leaves weights and optimizer state alone on all ranks.
        """

    def was_step_applied(self) -> bool:
        """Whether the latest update happened."""

    def get_global_grad_norm(self) -> Any:
        """Norm of the latest update's gradients before clipping, a number or a tensor."""


@dataclass(frozen=True)
class StepOutcome:
    """What a step came to, over all ranks.

    Attributes:
        loss: mean squared error over all chosen positions of the global batch.
        gradient_norm: before clipping.
        applied: whether the weights were updated; where not, loss or gradient norm is not finite.
        cells: of the global batch.
        tokens: encoder tokens of the global batch.
        flops: useful floating point operations, forward and backward.
        suspects: after a step that was not applied, this rank's micro-batches that may be why, by number: those
            whose own loss is not finite, or all where all of this rank's losses are.
        has_broken_loss: whether one of this rank's own losses is not finite.
    """

    loss: float
    gradient_norm: float
    applied: bool
    cells: int
    tokens: int
    flops: int
    suspects: tuple[int, ...]
    has_broken_loss: bool


class GlobalStep:
    """Steps of one rank; every rank calls with its own cells and the same step."""

    def __init__(
        self, engine: Engine, model: ModelConfig, masking: Masking, clock: StepClock, ranks: int = 1
    ) -> None:
        self.engine, self.model, self.masking = engine, model, masking
        self.clock, self.ranks = clock, ranks

    def run(
        self, micro_batches: Sequence[CellTensors], step: int, learning_rate: float, rounds: int | None = None
    ) -> StepOutcome:
        """Take step number ``step`` (from 1, the key of its masks); stops the clock, which the caller started.

        ``rounds`` is the number of micro-batches of the rank that has most, by default that of this one. A rank that
        has fewer takes its first one again at weight 0, since the engines of all ranks must run equally often.
        """
        clock, engine = self.clock, self.engine
        clock.enter("mask")
        masked = [self.masking.mask(cells, step) for cells in micro_batches]
        contexts = [
            self.masking.sample(part, cells.cell_ids, step)
            for part, cells in zip(masked, micro_batches, strict=True)
        ]
        positions, cells, tokens, flops = self._sum_over_ranks(
            sum(part.target_X.numel() for part in masked),
            sum(len(cells) for cells in micro_batches),
            sum(part.position_N.numel() for part in masked),
            sum(map(training_flops, itertools.repeat(self.model), masked, contexts)),
        )
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        rounds = rounds or len(masked)
        terms = self.ranks * rounds
        own_losses: list[Tensor] = []
        for number in range(rounds):
            clock.enter("forward")
            place = number if number < len(masked) else 0
            loss = share_of_global_loss(
                engine(masked[place], contexts[place]), masked[place].target_X, int(positions), terms
            )
            if number >= len(masked):
                loss = loss * 0.0
            own_losses.append(loss.detach())
            if number == rounds - 1:
                total = self._total(own_losses)
                # An infinite loss may still have finite gradients: make them NaN, so that the engine's own check
                # skips the update, on every rank. A factor of 1 changes no bit.
                loss = loss * torch.where(total.isfinite(), 1.0, math.nan)
            clock.enter("backward")
            engine.backward(loss)
            clock.enter("optimizer")
            engine.step()
        clock.stop()
        applied = engine.was_step_applied()
        broken = () if applied else _not_finite(own_losses[: len(masked)])
        return StepOutcome(
            loss=total.item() / terms,
            gradient_norm=float(engine.get_global_grad_norm()),
            applied=applied,
            cells=int(cells),
            tokens=int(tokens),
            flops=int(flops),
            suspects=() if applied else broken or tuple(range(len(masked))),
            has_broken_loss=bool(broken),
        )

    def _total(self, own_losses: list[Tensor]) -> Tensor:
        """Sum of the losses over micro-batches and ranks, float64 (), without a wait for the device."""
        total = torch.stack(own_losses).sum(dtype=torch.float64)
        if self.ranks > 1:
            with self.clock.communicating():
                dist.all_reduce(total)
        return total

    def _sum_over_ranks(self, *numbers: float) -> list[float]:
        if self.ranks == 1:
            return list(numbers)
        device = torch.device("cpu")
        if dist.get_backend() == "nccl":
            device = torch.device("cuda", torch.cuda.current_device())
        total = torch.tensor(numbers, dtype=torch.float64, device=device)
        with self.clock.communicating():
            dist.all_reduce(total)
        return total.tolist()


def _not_finite(losses: list[Tensor]) -> tuple[int, ...]:
    return tuple(number for number, loss in enumerate(losses) if not math.isfinite(loss))
