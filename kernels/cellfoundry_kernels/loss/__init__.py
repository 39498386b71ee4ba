"""Mean squared error over the chosen positions: the public op.

Shape legend: X chosen positions.
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels.dispatch import use_triton
from cellfoundry_kernels.loss import reference


def masked_mse(prediction_X: Tensor, target_X: Tensor) -> Tensor:
    """Mean squared error over the chosen positions, a scalar in float32 at least; 0 where nothing was chosen.

    Both arguments have gradients, each in its own dtype. 3 X FLOPs; bytes: both tensors once forward, and once more
    with the gradient backward.

    Args:
        prediction_X: Predictions at the chosen positions, (X,), any float dtype.
        target_X: Targets, (X,), any float dtype.

    Raises:
        ValueError: The two shapes differ, or are not (X,).
    """
    if prediction_X.dim() != 1 or prediction_X.shape != target_X.shape:
        raise ValueError(
            f"masked_mse got predictions {tuple(prediction_X.shape)} and targets {tuple(target_X.shape)}: "
            "give one of each for every chosen position."
        )
    if use_triton(prediction_X) and use_triton(target_X):
        from cellfoundry_kernels.loss.kernel import masked_mse as twin

        return twin(prediction_X, target_X)
    return reference.masked_mse(prediction_X, target_X)
