"""The training step's engine in torch alone, to measure the step where DeepSpeed is not, and to compare with.

Weights are float32, or bf16 with float32 masters in the optimizer as DeepSpeed keeps them; with more ranks than one the
gradients are averaged by DistributedDataParallel.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cellfoundry_kernels import MaskedCells
from cellfoundry_model.decoder_context import DecoderContext
from cellfoundry_training.guarded_adamw import GuardedAdamW

RATE = 1e-4
"""Learning rate of steps that are only timed."""


class PlainEngine:
    """An ``Engine`` (see ``cellfoundry_training.step``) of one micro-batch a step.

    Args:
        model: float32, on its device; becomes bf16 where ``dtype`` says so.
        dtype: of weights and activations.
        clip: largest norm of the gradients.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32, clip: float = 1.0) -> None:
        masters = [parameter.detach().clone() for parameter in model.parameters()]
        self._model: nn.Module = model.to(dtype).train()
        self._weights: list[Tensor] = list(model.parameters())
        self._masters = self._weights if dtype == torch.float32 else masters
        if dist.is_initialized():
            self._model = DistributedDataParallel(model)
        self.optimizer = GuardedAdamW(self._masters, clip=clip, lr=RATE, weight_decay=0.0)

    def __call__(self, masked: MaskedCells, context: DecoderContext | None = None) -> Tensor:
        """Predictions at the chosen positions, (X,)."""
        prediction_X: Tensor = self._model(masked, context)
        return prediction_X

    def backward(self, loss: Tensor) -> None:
        """Gradients of every weight, averaged over ranks."""
        loss.backward()

    def step(self) -> None:
        """Clip, update the masters, and round the weights to them."""
        if self._masters is not self._weights:
            for master, weight in zip(self._masters, self._weights, strict=True):
                master.grad = None if weight.grad is None else weight.grad.float()
        self.optimizer.step()
        if self._masters is not self._weights:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, self._masters)
        for weight in self._weights:
            weight.grad = None

    def was_step_applied(self) -> bool:
        """Whether the latest gradients were finite."""
        return not self.optimizer.overflow

    def get_global_grad_norm(self) -> Tensor:
        """Before clipping, ()."""
        return self.optimizer._global_grad_norm
