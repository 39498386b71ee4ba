"""Mean squared error over the chosen positions: the public op.

Shape legend: X chosen positions.
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels.loss import reference


def masked_mse(prediction_X: Tensor, target_X: Tensor) -> Tensor:
    """Mean squared error over the chosen positions, a scalar in float32 at least; 0 where nothing was chosen.

    Args:
        prediction_X: Predictions at the chosen positions, (X,).
        target_X: Targets, (X,).
    """
    return reference.masked_mse(prediction_X, target_X)
