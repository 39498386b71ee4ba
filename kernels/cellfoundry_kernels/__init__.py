"""Ops of the model over packed (ragged) cells, a folder each: the public op (``__init__.py``), its twin in plain
torch (``reference.py``), and its Triton kernels for NVIDIA GPUs as registered ops of torch (``kernel.py``).

Needs torch and numpy; triton is imported only when a kernel runs, because it exists on Linux only.
"""

from cellfoundry_kernels.embedding import value_embedding
from cellfoundry_kernels.favor import favor_attention
from cellfoundry_kernels.loss import masked_mse
from cellfoundry_kernels.masking import MaskedCells, mask_cells
from cellfoundry_kernels.pooling import pool_cells
from cellfoundry_kernels.varlen import varlen_attention
from cellfoundry_kernels.zero_table import scatter_into_zero_table

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
