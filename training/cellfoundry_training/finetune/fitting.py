"""The loop: epochs of AdamW over the training cells, until the validation loss stops falling or for so many.

Legend: E labelled cells with counts, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellfoundry_model.head import Head
from cellfoundry_model.token_batch import TokenBatch
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.finetune.config import FinetuneConfig
from cellfoundry_training.finetune.inputs import Inputs, Progress
from cellfoundry_training.finetune.split import Positions, Split


@dataclass(frozen=True)
class Epoch:
    """One pass over the training cells.

    Attributes:
        epoch: from 1.
        train_loss: mean over the training cells, as they were met.
        validation_loss: mean over the validation cells after the epoch.
        seconds: wall time of both.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    seconds: float


class Objective:
    """Loss of a head's outputs: cross entropy, or squared error in units of the label's standard deviation.

    Args:
        head: whose outputs are judged.
        value_E: class numbers int64, or float64 numbers, on the head's device.
        train: the training cells, whose class sizes the weights balance.
        balanced: every class weighs the same in sum.
    """

    def __init__(self, head: Head, value_E: Tensor, train: Positions, *, balanced: bool) -> None:
        self._head, self._value_E = head, value_E
        self._weight_K: Tensor | None = None
        if balanced and head.config.task == "classification":
            cells_K = torch.bincount(
                value_E[torch.from_numpy(train).to(value_E.device)], minlength=len(head.config.classes)
            )
            self._weight_K = len(train) / (len(cells_K) * cells_K.clamp(min=1).float())

    def loss_sum(self, output: Tensor, cells: Positions) -> Tensor:
        """Sum of the cells' weighted losses, a scalar; ``output`` is the head's for ``cells``."""
        value = self._value_E[torch.from_numpy(cells).to(self._value_E.device)]
        if self._head.config.task == "classification":
            return F.cross_entropy(output, value, self._weight_K, reduction="sum")
        return ((output - value) / self._head.label_scale).square().sum()

    def weight_sum(self, cells: Positions) -> float:
        """Sum of the cells' weights, which makes a mean of the sum of losses."""
        if self._weight_K is None:
            return float(len(cells))
        return float(self._weight_K[self._value_E[torch.from_numpy(cells).to(self._value_E.device)]].sum())


class Fitting:
    """A module that learns on some cells.

    Args:
        encoder: makes vectors of the inputs; those of its parameters that ask for a gradient learn.
        head: learns, and is on the device of the inputs.
        inputs: of all cells.
        objective: what is made small.
        config: how.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: Head,
        inputs: Inputs,
        objective: Objective,
        config: FinetuneConfig,
    ) -> None:
        self._encoder, self._head, self._inputs = encoder, head, inputs
        self._objective, self._config = objective, config
        tuned = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        groups = [{"params": list(head.parameters()), "lr": config.learning_rate}]
        if tuned:
            groups.append({"params": tuned, "lr": config.encoder_learning_rate})
        self._learning = [*head.parameters(), *tuned]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)

    @property
    def parameters(self) -> int:
        """How many numbers learn."""
        return sum(parameter.numel() for parameter in self._learning)

    def run(
        self, split: Split, progress: Progress | None, watch: Callable[[Epoch], None] | None
    ) -> list[Epoch]:
        """Fit, and leave the weights of the epoch with the lowest validation loss; the epochs, in order.

        Raises:
            TrainingError: a loss that is no finite number.
        """
        config, epochs = self._config, []
        best, kept, waited = math.inf, self._weights(), 0
        for number in range(1, config.max_epochs + 1):
            started = time.monotonic()
            train_loss = self._epoch(number, split.train, progress)
            validation_loss = self._loss(split.validation)
            self._check_finite(number, train_loss, validation_loss)
            epochs.append(Epoch(number, train_loss, validation_loss, time.monotonic() - started))
            if watch:
                watch(epochs[-1])
            waited += 1
            if validation_loss < best:
                best, kept, waited = validation_loss, self._weights(), 0
            if waited == config.patience:
                break
        with torch.no_grad():
            for parameter, value in zip(self._learning, kept, strict=True):
                parameter.copy_(value)
        return epochs

    def run_all(self, train: Positions, progress: Progress | None) -> None:
        """Fit for all of ``max_epochs``, and leave the last weights.

        Raises:
            TrainingError: a loss that is no finite number.
        """
        for number in range(1, self._config.max_epochs + 1):
            self._check_finite(number, self._epoch(number, train, progress))

    def _check_finite(self, number: int, *losses: float) -> None:
        if not all(math.isfinite(loss) for loss in losses):
            raise TrainingError(
                f"fine-tuning: the loss is not a finite number in epoch {number}; set lower learning rates than "
                f"{self._config.learning_rate:g} and {self._config.encoder_learning_rate:g} (encoder)"
            )

    def _epoch(self, number: int, train: Positions, progress: Progress | None) -> float:
        order = np.random.default_rng([self._config.seed, number]).permutation(train)
        summed, weights = torch.zeros((), device=self._learning[0].device), 0.0
        for first in range(0, len(order), self._config.batch_cells):
            cells = order[first : first + self._config.batch_cells]
            weight = self._objective.weight_sum(cells)
            self._optimizer.zero_grad(set_to_none=True)
            for part, given in self._inputs.parts(cells):
                loss = self._objective.loss_sum(self._output(given), part)
                (loss / weight).backward()
                summed += loss.detach()
            weights += weight
            nn.utils.clip_grad_norm_(self._learning, self._config.clip)
            self._optimizer.step()
            if progress:
                done = (number - 1) * len(order) + first + len(cells)
                progress("train", done, self._config.max_epochs * len(order))
        return float(summed) / weights

    @torch.no_grad()
    def _loss(self, cells: Positions) -> float:
        total = sum(
            float(self._objective.loss_sum(self._output(given), part))
            for part, given in self._inputs.parts(cells)
        )
        return total / self._objective.weight_sum(cells)

    def _output(self, given: Tensor | TokenBatch) -> Tensor:
        return output(self._encoder, self._head, given, self._config.precision)

    def _weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._learning]


def output(encoder: nn.Module, head: Head, given: Tensor | TokenBatch, precision: str) -> Tensor:
    """The head's outputs for one part of the inputs."""
    with torch.autocast(head.label_mean.device.type, torch.bfloat16, enabled=precision == "bf16"):
        vector_CW: Tensor = encoder(given)
    return head(vector_CW.float())


@torch.no_grad()
def outputs(encoder: nn.Module, head: Head, inputs: Inputs, cells: Positions, precision: str) -> Tensor:
    """The head's outputs for ``cells`` in their order, on the CPU, (cells, K) or (cells,)."""
    positions, found = [], []
    for part, given in inputs.parts(cells):
        positions.append(part)
        found.append(output(encoder, head, given, precision).cpu())
    place = torch.from_numpy(np.argsort(np.concatenate(positions), kind="stable"))
    # ``cells`` ascend, so ordering what came by position restores their order.
    return torch.cat(found)[place]
