"""Attention over packed cells in plain torch: the twin of the kernel, and the CPU path.

Shape legend: N tokens over all cells, C cells, H heads, K head dim. Cell ``c`` owns tokens
``cu_seqlens[c]:cu_seqlens[c + 1]``.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


def varlen_attention(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """Attention cell by cell, so that neither padding nor an N x N mask exists.

    Without a mask torch takes its flash path, whose memory grows with tokens and not with their square. Padded
    batches of cells of near-equal length do not pay: at 64 real cells and 4 heads x 32, batches of 4 and of 16
    take 1.2 and 1.5 times the CPU-seconds of one call a cell.
    """

    def one_cell(first: int, last: int) -> Tensor:
        q_1HnK, k_1HnK, v_1HnK = (x[first:last].transpose(0, 1)[None] for x in (q_NHK, k_NHK, v_NHK))
        return F.scaled_dot_product_attention(q_1HnK, k_1HnK, v_1HnK, scale=scale)[0].transpose(0, 1)

    bounds = cu_seqlens.tolist()
    cells = [one_cell(first, last) for first, last in itertools.pairwise(bounds) if last > first]
    return torch.cat(cells) if cells else torch.empty_like(v_NHK)
