"""Masking of the pretraining objective over a batch of raw cells: the public op.

Shape legend: N encoder tokens, C cells, X chosen positions, Z stored entries (non-zeros of the raw cells).
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels.dispatch import use_triton
from cellfoundry_kernels.masking import reference
from cellfoundry_kernels.masking.definition import THINNING_MINIMUM_TOTAL, MaskedCells, Settings, Thresholds

__all__ = ["THINNING_MINIMUM_TOTAL", "MaskedCells", "mask_cells"]


def mask_cells(
    indptr: Tensor,
    gene_ids: Tensor,
    counts: Tensor,
    cell_ids: Tensor,
    *,
    n_genes: int,
    seed: int,
    step: int,
    value_mask_prob: float = 0.3,
    zero_mask_prob: float = 0.03,
    replace_prob: float = 0.8,
    random_prob: float = 0.1,
    read_depth_aware: bool = True,
    mask_token_id: float = 102.0,
) -> MaskedCells:
    """Thin, normalise and mask raw cells; a cell's result depends on (seed, step, its id, its counts) alone.

    Thinning (read-depth-aware): a cell whose total is at least 1,000 is thinned with probability 0.5, each
    molecule kept with probability p ~ Beta(2, 2) (the median of three uniforms), so a count becomes
    Binomial(count, p). S is log10 of the input's total, T of the raw total (totals below 1 count as 1).
    Positions are then chosen one by one, with ``value_mask_prob`` where the input is non-zero and
    ``zero_mask_prob`` where it is zero.

    Both twins take the same decisions to the last bit; their float values may differ in the last one
    (``masking.definition`` has the random streams). Work: a Philox call for each 4 of C x n_genes positions
    and for each 4 molecules of a gene that is thinned; bytes grow with Z, N and X only. On CUDA the call waits
    for the device once, for the sizes N and X; a batch without cells does not wait.

    Args:
        indptr: int64, (C + 1,), CSR rows.
        gene_ids: int32 or int64 gene ids, (Z,), strictly ascending in a cell.
        counts: Raw counts > 0, whole numbers below 2^31 where ``read_depth_aware``, (Z,); float32, or float64
            with the reference.
        cell_ids: int64 id of each cell, (C,), for example its row in the store.
        n_genes: Genes of the vocabulary.
        seed: 0 to 2^32 - 1.
        step: 0 to 2^32 - 1; another step gives other masks.
        value_mask_prob: Share of the input's non-zero positions that is chosen.
        zero_mask_prob: Share of the input's zero positions that is chosen.
        replace_prob: Share of the chosen that becomes the mask token; such a position is no encoder token.
        random_prob: Share of the chosen that takes a random non-zero value of the same input cell; the rest
            is kept.
        read_depth_aware: Whether cells are thinned.
        mask_token_id: Value that stands for the mask token.

    Raises:
        ValueError: seed or step out of range, a share outside 0 to 1, columns of different lengths, or counts to be
            thinned that are not whole numbers. On a CPU also: row bounds that do not ascend from 0 to Z, gene ids
            that do not ascend in a cell or are none of ``n_genes``; on CUDA such input gives a wrong result.
    """
    for name, number in (("seed", seed), ("step", step)):
        if not 0 <= number < 1 << 32:
            raise ValueError(f"mask_cells got {name} {number}: use an integer from 0 to 2^32 - 1.")
    if len(gene_ids) != len(counts) or len(cell_ids) != len(indptr) - 1:
        raise ValueError(
            f"mask_cells got {len(gene_ids)} gene ids with {len(counts)} counts, and {len(cell_ids)} cell ids with "
            f"{len(indptr)} row bounds: give a count for each gene id, and one bound more than there are cells."
        )
    shares = {
        "value_mask_prob": value_mask_prob,
        "zero_mask_prob": zero_mask_prob,
        "replace_prob": replace_prob,
        "random_prob": random_prob,
        "replace_prob + random_prob": replace_prob + random_prob,
    }
    for name, share in shares.items():
        if not 0 <= share <= 1 + 1e-9:
            raise ValueError(f"mask_cells got {name} {share:g}: give a share from 0 to 1.")
    settings = Settings(
        n_genes,
        seed,
        step,
        Thresholds.of(value_mask_prob, replace_prob, random_prob),
        Thresholds.of(zero_mask_prob, replace_prob, random_prob),
        read_depth_aware,
        mask_token_id,
    )
    if use_triton(counts):
        from cellfoundry_kernels.masking.kernel import mask_cells as twin

        return twin(indptr, gene_ids, counts, cell_ids, settings)
    return reference.mask_cells(indptr, gene_ids, counts, cell_ids, settings)
