"""AdamW that clips its gradients and leaves everything as it is where their norm is not finite.

DeepSpeed does both for every setting but float32 without ZeRO, where gradients are averaged over ranks and then handed
to the optimizer: all ranks see the same norm and decide alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class GuardedAdamW(torch.optim.AdamW):
    """torch's AdamW behind a check; DeepSpeed's engine reads ``overflow`` and counts the step as skipped.

    Attributes:
        overflow: whether the latest step was skipped.
    """

    def __init__(self, params: Iterable[Tensor], *, clip: float, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.clip = clip
        self.overflow = False
        self._global_grad_norm = torch.zeros(())

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Clip to ``clip`` and update, or do nothing."""
        parameters = [
            each for group in self.param_groups for each in group["params"] if each.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm([each.grad for each in parameters])
        self._global_grad_norm = norm
        self.overflow = not bool(norm.isfinite())
        if not self.overflow:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
            super().step(closure)
