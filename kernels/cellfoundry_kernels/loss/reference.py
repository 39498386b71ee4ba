"""The loss in plain torch: the twin of the kernel, and the CPU path.

Shape legend: X chosen positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mse(prediction_X: Tensor, target_X: Tensor) -> Tensor:
    """Mean squared error in float32 at least, summed once."""
    dtype = torch.promote_types(prediction_X.dtype, torch.float32)
    difference_X = prediction_X.to(dtype) - target_X.to(dtype)
    return (difference_X * difference_X).sum() / max(difference_X.numel(), 1)
