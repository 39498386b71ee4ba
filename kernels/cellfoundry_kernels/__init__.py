"""Ops of the model over packed (ragged) cells: torch references, and Triton twins for NVIDIA GPUs.

Needs torch and numpy; triton is imported only when a Triton twin runs.
"""

from cellfoundry_kernels.masking import MaskedCells, mask_cells
from cellfoundry_kernels.ops import (
    favor_attention,
    masked_mse,
    pool_cells,
    scatter_into_zero_table,
    value_embedding,
    varlen_attention,
)

__all__ = [
    "MaskedCells",
    "favor_attention",
    "mask_cells",
    "masked_mse",
    "pool_cells",
    "scatter_into_zero_table",
    "value_embedding",
    "varlen_attention",
]
