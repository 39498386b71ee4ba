"""Pooling of ragged cells in plain torch: the twin of the kernel, and the CPU path.

Shape legend: N tokens over all cells, C cells, D width; cell ``c`` owns tokens ``cu_seqlens[c]:cu_seqlens[c + 1]``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pool_cells(x_ND: Tensor, cu_seqlens: Tensor, mode: str) -> Tensor:
    """Segment reductions over all cells at once."""
    if not len(x_ND):  # segment_reduce refuses an empty input
        width = x_ND.shape[1] * (4 if mode == "all" else 1)
        return x_ND.new_full((len(cu_seqlens) - 1, width), torch.nan)
    lengths_C = cu_seqlens.diff().long()
    has_genes_C1 = (lengths_C > 2)[:, None]
    if mode == "max":
        pooled = torch.segment_reduce(x_ND, "max", lengths=lengths_C)
    else:
        # Segments alternate between a cell's genes and its last two tokens; every second result is wanted.
        last_C = lengths_C.clamp(max=2)
        lengths_2C = torch.stack([lengths_C - last_C, last_C], 1).flatten()
        gene_max_CD = torch.segment_reduce(x_ND, "max", lengths=lengths_2C)[::2]
        # A half precision accumulator would lose the mean of thousands of tokens.
        wide_ND = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
        gene_mean_CD = torch.segment_reduce(wide_ND, "mean", lengths=lengths_2C)[::2].to(x_ND.dtype)
        # Token 0 stands in for the missing ones of a leading empty cell, which becomes NaN below.
        s_CD, t_CD = (x_ND[(cu_seqlens[1:].long() - back).clamp(min=0)] for back in (1, 2))
        pooled = torch.cat([s_CD, t_CD, gene_max_CD, gene_mean_CD], 1)
    return torch.where(has_genes_C1, pooled, torch.nan)
