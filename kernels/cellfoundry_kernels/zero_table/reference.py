"""The decoder's input in plain torch: the twin of the kernel, and the CPU path.

Shape legend: N tokens over all cells, C cells, P positions, D width.
"""

from __future__ import annotations

from torch import Tensor


def scatter_into_zero_table(
    zero_table_PD: Tensor, encoder_ND: Tensor, cell_index_N: Tensor, position_N: Tensor, cells: int
) -> Tensor:
    """One copy of the table a cell, then one indexed write."""
    decoder_CPD = zero_table_PD.to(encoder_ND.dtype).repeat(cells, 1, 1)
    return decoder_CPD.index_put_((cell_index_N, position_N), encoder_ND)
