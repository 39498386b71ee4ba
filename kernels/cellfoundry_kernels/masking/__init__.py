"""Masking of the pretraining objective over a batch of raw cells: the public op."""

from __future__ import annotations

from cellfoundry_kernels.masking.reference import THINNING_MINIMUM_TOTAL, MaskedCells, mask_cells

__all__ = ["THINNING_MINIMUM_TOTAL", "MaskedCells", "mask_cells"]
