"""The decoder's input from one table and the encoder's tokens: the public op.

Shape legend: N tokens over all cells, C cells, P positions, D width.
"""

from __future__ import annotations

from torch import Tensor

from cellfoundry_kernels.dispatch import use_triton
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
        (C, P, D); no FLOPs, C P D elements written and N D read; backward reads C P D once in all.

    Raises:
        ValueError: Table and tokens differ in width, or there is not one cell and one position a token.
    """
    if zero_table_PD.shape[1] != encoder_ND.shape[1]:
        raise ValueError(
            f"scatter_into_zero_table got a table of width {zero_table_PD.shape[1]} and tokens of width "
            f"{encoder_ND.shape[1]}: give both the decoder's width."
        )
    if not len(encoder_ND) == len(cell_index_N) == len(position_N):
        raise ValueError(
            f"scatter_into_zero_table got {len(encoder_ND)} tokens, {len(cell_index_N)} cell indices and "
            f"{len(position_N)} positions: give one of each for every token."
        )
    if use_triton(encoder_ND) and use_triton(zero_table_PD):
        from cellfoundry_kernels.zero_table.kernel import scatter_into_zero_table as twin

        return twin(zero_table_PD, encoder_ND, cell_index_N, position_N, cells)
    return reference.scatter_into_zero_table(zero_table_PD, encoder_ND, cell_index_N, position_N, cells)
