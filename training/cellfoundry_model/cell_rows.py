"""Rows of several cells, one after another, and the table of one line a cell that an op may want them in.

Legend: C cells, R rows over all cells, N encoder tokens over all cells, P places of a line, I channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CellRows(NamedTuple):
    """Which rows belong to which cell; linear maps and norms take rows as they are, so that none is padding.

    Attributes:
        shape: cells and places of the table's lines.
        row_CP: int64, the row at each place; a cell with fewer rows than the longest repeats its first one, so that no
            maximum over a line knows of other cells. None where all cells have P rows, in order.
        place_R: int64, the place of each row in the flat table, or None as above.
        weight_CP: float32, how many times the row at each place counts, 0 for repeats; None if all count once.
    """

    shape: tuple[int, int]
    row_CP: Tensor | None = None
    place_R: Tensor | None = None
    weight_CP: Tensor | None = None

    @classmethod
    def ragged(cls, cell_index_R: Tensor, cells: int, weight_R: Tensor | None = None) -> CellRows:
        """Rows of the cells ``cell_index_R`` (int64) in any order; waits for the device, for the longest cell."""
        order_R = cell_index_R.argsort(stable=True)
        sorted_R = cell_index_R[order_R]
        # Not bincount, whose length torch.compile takes for unknown.
        count_C = cell_index_R.new_zeros(cells).index_add_(0, cell_index_R, torch.ones_like(cell_index_R))
        longest = int(count_C.max()) if cells else 1  # attention takes no line without a key
        first_C = count_C.cumsum(0) - count_C
        rows = torch.arange(len(order_R), device=order_R.device)
        place_R = torch.empty_like(order_R)
        place_R[order_R] = sorted_R * longest + rows - first_C[sorted_R]
        # A cell without rows takes another cell's, which no one looks at.
        filler_C = order_R[first_C.clamp(max=len(order_R) - 1)] if len(order_R) else first_C
        row_CP = filler_C[:, None].repeat(1, longest)
        row_CP.view(-1)[place_R] = rows
        weight_CP = None
        if weight_R is not None:
            weight_CP = weight_R.new_zeros(cells, longest)
            weight_CP.view(-1)[place_R] = weight_R
        return cls((cells, longest), row_CP, place_R, weight_CP)

    def spread(self, x_RI: Tensor) -> Tensor:
        """Rows (R, I) as a table (C, P, I)."""
        if self.row_CP is None:
            return x_RI.unflatten(0, self.shape)
        return x_RI.index_select(0, self.row_CP.flatten()).unflatten(0, self.shape)

    def collect(self, x_CPI: Tensor) -> Tensor:
        """A table (C, P, I) as rows (R, I)."""
        x_RI = x_CPI.flatten(0, 1)
        return x_RI if self.place_R is None else x_RI.index_select(0, self.place_R)


def cell_of_token(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Index of the cell each packed token belongs to, int64 (N,)."""
    cells = torch.arange(cu_seqlens.numel() - 1, device=cu_seqlens.device)
    return cells.repeat_interleave(cu_seqlens.diff().long(), output_size=tokens)
