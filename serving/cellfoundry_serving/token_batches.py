"""How cells are cut into batches that cost about the same: by tokens, never by cells alone (numpy only)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch

SPECIAL_TOKENS = 2  # T and S, present in every cell


def token_counts(batch: CellBatch) -> npt.NDArray[np.int64]:
    """Tokens of each cell, int64, (cells,): its genes, T and S."""
    return np.diff(batch.indptr) + SPECIAL_TOKENS


def consecutive(tokens: npt.NDArray[np.int64], max_tokens: int, max_cells: int) -> Iterator[range]:
    """Ranges of neighbouring cells with at most ``max_tokens`` tokens and ``max_cells`` cells in each.

    A single cell above ``max_tokens`` stands alone. The ranges cover all cells, in order.
    """
    start, held = 0, 0
    for cell, count in enumerate(tokens):
        if cell > start and (held + count > max_tokens or cell - start == max_cells):
            yield range(start, cell)
            start, held = cell, 0
        held += int(count)
    if start < len(tokens):
        yield range(start, len(tokens))


def padded(tokens: npt.NDArray[np.int64], max_tokens: int, max_cells: int) -> Iterator[npt.NDArray[np.int64]]:
    """Cells of like length together, longest first: cells x longest <= ``max_tokens``, at most ``max_cells``.

    A single cell above ``max_tokens`` stands alone. Yields positions, int64; each cell occurs once.
    """
    order = np.argsort(-tokens, kind="stable")
    start = 0
    while start < len(order):
        cells = max(1, min(max_cells, int(max_tokens // tokens[order[start]])))
        yield order[start : start + cells]
        start += cells
