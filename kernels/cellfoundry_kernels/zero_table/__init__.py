"""The decoder's input from one table and the encoder's tokens: the public op.

Shape legend: N tokens over all cells, C cells, P positions, D width.
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels.zero_table import reference


def scatter_into_zero_table(
    zero_table_PD: Tensor, encoder_ND: Tensor, cell_index_N: Tensor, position_N: Tensor, cells: int
) -> Tensor:
    """Decoder input: every cell starts as the table of zero genes, its encoder tokens overwrite theirs.

    Args:
        zero_table_PD: What an unmasked zero gene is at each position, the same for every cell, (P, D).
        encoder_ND: Encoder output, (N, D); its dtype is the result's.
        cell_index_N: int64 cell of each token, (N,).
        position_N: int64 position of each token, (N,); no (cell, position) pair occurs twice.
        cells: Number of cells C.

    Returns:
        (C, P, D); no FLOPs, bytes C P D written and N D read.
    """
    return reference.scatter_into_zero_table(zero_table_PD, encoder_ND, cell_index_N, position_N, cells)
