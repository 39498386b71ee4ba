"""A block of a source onto the vocabulary's genes: checks, mapping, order and sums in one pass over its entries.

Speed (one core, 1,600 entries a cell): 4 us a cell where the columns come in the vocabulary's order, 12 us where
they do not.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from .batch import CellBatch

COUNT_LIMIT = 2.0**32
"""Counts must be below: a store keeps them as 32-bit integers. From 2**24 on, float32 rounds them."""

_NEGATIVE, _NOT_FINITE, _FRACTION, _TOO_LARGE = 1, 2, 3, 4
_PROBLEMS = {
    _NEGATIVE: "negative",
    _NOT_FINITE: "not finite",
    _FRACTION: "fraction",
    _TOO_LARGE: "too large",
}
# 2**n * _DE_BRUIJN has other upper six bits for each n: numba has no instruction for the lowest set bit.
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_OF = np.zeros(64, np.int32)
for _bit in range(64):
    _BIT_OF[(int(_DE_BRUIJN) << _bit & (2**64 - 1)) >> 58] = _bit


class BadEntryError(ValueError):
    """A value that cannot be taken.

    Attributes:
        entry: its position among the block's stored entries.
        problem: "negative", "not finite", "fraction" or "too large" (a sum of equal genes may be, too).
    """

    def __init__(self, entry: int, problem: str) -> None:
        super().__init__(f"entry {entry} is {problem}")
        self.entry = entry
        self.problem = problem


def aligned_cells(
    block: sp.csr_matrix,
    column_to_gene: npt.NDArray[np.int32],
    n_genes: int,
    first_row: int = 0,
    *,
    counts: bool = True,
) -> tuple[CellBatch, float]:
    """Move a block's columns to their genes: zeros and dropped columns go, equal genes are summed.

    Args:
        block: float32 CSR, (cells, columns), column indices in range, in any order and with repeats.
        column_to_gene: int32, (columns,); -1 drops a column.
        n_genes: size of the vocabulary.
        first_row: row id of the block's first cell.
        counts: refuse fractions and values from ``COUNT_LIMIT`` on.

    Returns:
        The cells, and the sum of all values of the block, dropped columns included.

    Raises:
        BadEntryError: the first entry that is negative, NaN or infinite or, with ``counts``, no count.
    """
    indptr = np.zeros(block.shape[0] + 1, np.int64)
    genes, values = np.empty(block.nnz, np.int32), np.empty(block.nnz, np.float32)
    total, problem, entry = _align_rows(
        block.data,
        block.indices.astype(np.int32, copy=False),
        block.indptr.astype(np.int64, copy=False),
        column_to_gene,
        n_genes,
        counts,
        indptr,
        genes,
        values,
    )
    if problem:
        raise BadEntryError(entry, _PROBLEMS[problem])
    row_ids = np.arange(first_row, first_row + block.shape[0], dtype=np.int64)
    return CellBatch(indptr, genes[: indptr[-1]], values[: indptr[-1]], row_ids), total


@numba.njit(nogil=True, cache=True)
def _align_rows(data, indices, indptr, column_to_gene, n_genes, counts, out_indptr, out_genes, out_values):  # type: ignore[no-untyped-def]
    """Fill the three ``out`` arrays; (sum of the values, 0 or the problem, its entry)."""
    sums = np.zeros(n_genes, np.float64)
    present = np.zeros((n_genes + 63) // 64, np.uint64)
    total = 0.0
    n_out = 0
    for row in range(len(indptr) - 1):
        first, end = indptr[row], indptr[row + 1]
        row_total, sound = _checked_total(data[first:end], counts)
        if not sound:
            return total, *_first_problem(data, first, end, counts)
        total += row_total
        first_out = n_out
        n_out += _kept_entries(
            data[first:end], indices[first:end], column_to_gene, out_genes[n_out:], out_values[n_out:]
        )
        if not _ascend(out_genes[first_out:n_out]):
            for out in range(first_out, n_out):
                gene = out_genes[out]
                sums[gene] += out_values[out]
                present[gene >> 6] |= np.uint64(1) << np.uint64(gene & 63)
            n_out = first_out
            for word in range(len(present)):
                bits = present[word]
                present[word] = 0
                while bits:
                    lowest = bits & (~bits + np.uint64(1))
                    bits ^= lowest
                    gene = word * 64 + _BIT_OF[(lowest * _DE_BRUIJN) >> np.uint64(58)]
                    if counts and sums[gene] >= COUNT_LIMIT:
                        return total, _TOO_LARGE, _entry_of(indices, indptr[row], column_to_gene, gene)
                    out_genes[n_out] = gene
                    out_values[n_out] = sums[gene]
                    sums[gene] = 0
                    n_out += 1
        out_indptr[row + 1] = n_out
    return total, 0, 0


@numba.njit(nogil=True, cache=True)
def _kept_entries(values, columns, column_to_gene, genes, counts):  # type: ignore[no-untyped-def]
    """Write a row's entries that are not zero and have a gene; how many they are.

    Positions are unsigned: numba asks of each signed one whether it is negative, 2 ns an entry.
    """
    kept = np.uint64(0)
    for entry in range(len(values)):
        value, gene = values[entry], column_to_gene[np.uint32(columns[entry])]
        genes[kept] = gene  # overwritten by the next entry unless kept, which spares a branch
        counts[kept] = value
        kept += np.uint64((gene >= 0) & (value != 0))
    return np.int64(kept)


@numba.njit(nogil=True, cache=True)
def _ascend(genes):  # type: ignore[no-untyped-def]
    """Whether each gene is above the one before it; without branches, so that it becomes vector code."""
    ascending = True
    for entry in range(1, len(genes)):
        ascending &= genes[entry] > genes[np.uint64(entry) - np.uint64(1)]
    return ascending


@numba.njit(nogil=True, cache=True, fastmath={"reassoc"})
def _checked_total(values, counts):  # type: ignore[no-untyped-def]
    """Sum of the values, and whether all can be taken; without branches, so that it becomes vector code."""
    limit = np.float32(COUNT_LIMIT if counts else np.inf)
    total, sound = 0.0, True
    if counts:
        for value in values:
            sound &= (value >= 0) & (value < limit) & (value == np.rint(value))
            total += value
    else:
        for value in values:
            sound &= (value >= 0) & (value < limit)
            total += value
    return total, sound


@numba.njit(nogil=True, cache=True)
def _first_problem(data, first, end, counts):  # type: ignore[no-untyped-def]
    """(problem, entry) of the first value that cannot be taken."""
    for entry in range(first, end):
        value = data[entry]
        if not (value >= 0 and value < np.inf):
            return _NEGATIVE if value < 0 else _NOT_FINITE, entry
        if counts and value != np.rint(value):
            return _FRACTION, entry
        if counts and value >= COUNT_LIMIT:
            return _TOO_LARGE, entry
    return 0, 0


@numba.njit(nogil=True, cache=True)
def _entry_of(indices, first, column_to_gene, gene):  # type: ignore[no-untyped-def]
    """The first entry from ``first`` on that goes to ``gene``."""
    entry = first
    while column_to_gene[indices[entry]] != gene:
        entry += 1
    return entry
