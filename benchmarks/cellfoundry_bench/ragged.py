"""Batches whose cell lengths are those of real cells, for machines that have torch and no cell data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Lengths = Sequence[int] | npt.NDArray[np.int64]

# Genes per cell of the bundled pancreas donor (GSM2230757, 1,937 cells): its 0 %, 5 %, ... 100 % quantiles.
GENES_PER_CELL = (
    *(819, 953, 1070, 1192, 1310, 1428, 1536, 1630, 1728, 1804, 1881),
    *(1969, 2050, 2130, 2217, 2328, 2451, 2608, 2788, 3082, 4903),
)


def real_lengths(cells: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Genes of ``cells`` cells drawn from the real distribution, (cells,); between quantiles linear."""
    shares = np.random.default_rng(seed).random(cells)
    quantiles = np.linspace(0, 1, len(GENES_PER_CELL))
    return np.interp(shares, quantiles, GENES_PER_CELL).round().astype(np.int64)


def cu_seqlens_of(lengths: Lengths, device: str | None = None) -> Tensor:
    """Where each of cells with these token counts starts, and the end: int32, (cells + 1,)."""
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def synthetic_counts(cells: int, n_genes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A CSR batch with real lengths, as ``counts_of_lengths`` makes it."""
    return counts_of_lengths(np.minimum(real_lengths(cells, seed), n_genes), n_genes, seed)


def counts_of_lengths(lengths: Lengths, n_genes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A CSR batch: indptr int64, gene ids int64 ascending in a cell, counts float32 >= 1.

    Counts are 1 + Poisson of a log-normal rate, which gives the long tail of real ones (mean about 3).
    """
    rng = np.random.default_rng(seed)
    genes = np.concatenate([np.sort(rng.choice(n_genes, length, replace=False)) for length in lengths])
    counts = 1 + rng.poisson(rng.lognormal(0.0, 1.0, len(genes)))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return torch.from_numpy(indptr), torch.from_numpy(genes), torch.from_numpy(counts.astype(np.float32))
