"""Exact duplicates of cells among all sources, in bounded memory.

Each task hashes its cells and writes the hashes into files that are sorted by hash; a range of hashes is then one
slice of each file, read through a memory map. 24 bytes a cell: 1.2 GB on disk for 50 M cells.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store.cell_keys import MAX_SOURCE_ROWS

CELLS_PER_RANGE = 2**22
"""Cells whose hashes are compared at a time, on average: 100 MB of hashes, 300 MB while they are sorted."""


def content_hashes(cells: CellBatch) -> npt.NDArray[np.uint64]:
    """128 bits that equal cells share and different ones do not, uint64, (cells, 2).

    A cell is the set of its (gene, count) pairs: each pair is mixed twice to 64 bits (splitmix64's finaliser, as in
    ``store.cell_keys``), and the mixed pairs are added modulo 2^64. Among 10^9 cells two different ones agree with a
    probability of 10^-21; nothing is promised against counts made to collide.
    """
    return np.asarray(_hash_rows(cells.indptr, cells.gene_ids, cells.counts.view(np.uint32)))


def write_hashes(
    path: str | Path, hashes: npt.NDArray[np.uint64], source: int, rows: npt.NDArray[np.int64]
) -> None:
    """Write the hashes of some cells of a source, sorted, atomically.

    The file is a .npy of uint64, (3, cells): first hash, second hash, source * 2^40 + row.
    """
    path = Path(path)
    cells = np.uint64(source * MAX_SOURCE_ROWS) + rows.astype(np.uint64)
    order = np.argsort(hashes[:, 0], kind="stable")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, np.vstack([hashes[order].T, cells[order]]))
    temporary.replace(path)


def n_ranges(n_cells: int) -> int:
    """Ranges to cut the hashes of so many cells into."""
    return max(1, -(-n_cells // CELLS_PER_RANGE))


def find_duplicates(
    files: Iterable[str | Path], n_ranges: int, number: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sources and rows of the cells that equal an earlier one, among those in one range of hashes.

    Of equal cells the first by (source, row) is the original, all others are given, in that order. The ranges
    ``number`` = 0, ..., ``n_ranges`` - 1 together give every duplicate once, whatever the order of ``files`` and
    however cells are spread over them.

    Returns:
        int64, (duplicates,), twice.
    """
    table = np.concatenate([_range_of(path, n_ranges, number) for path in files], axis=1)
    # Merges the sorted slices; only cells that share their first hash with another need more than that.
    first = table[0]
    order = np.argsort(first, kind="stable")
    equal = first[order[1:]] == first[order[:-1]]
    with_equal = np.zeros(len(order), bool)
    with_equal[1:] |= equal
    with_equal[:-1] |= equal
    shared = table[:, order[with_equal]]
    shared = shared[:, np.lexsort(shared[::-1])]
    repeats = (shared[:2, 1:] == shared[:2, :-1]).all(axis=0)
    cells = np.sort(shared[2, 1:][repeats]).astype(np.int64)
    return cells // MAX_SOURCE_ROWS, cells % MAX_SOURCE_ROWS


def _range_of(path: str | Path, n_ranges: int, number: int) -> npt.NDArray[np.uint64]:
    """A file's columns whose first hash, divided by 2^64 / ``n_ranges``, is ``number``."""
    table = np.load(path, mmap_mode="r")
    edges = [-(-edge * 2**64 // n_ranges) for edge in (number, number + 1)]
    start, stop = (
        int(np.searchsorted(table[0], np.uint64(edge))) if edge < 2**64 else table.shape[1] for edge in edges
    )
    return np.array(table[:, start:stop])  # a view would keep a map open for every file


@numba.njit(nogil=True, cache=True)
def _hash_rows(indptr, gene_ids, count_bits):  # type: ignore[no-untyped-def]
    """Sums of two mixes of (gene << 32 | bits of the count) over each row, sliced so that it becomes vector code."""
    cells = len(indptr) - 1
    hashes = np.zeros((cells, 2), np.uint64)
    for cell in range(cells):
        genes = gene_ids[indptr[cell] : indptr[cell + 1]]
        bits = count_bits[indptr[cell] : indptr[cell + 1]]
        first = second = np.uint64(0)
        for entry in range(len(genes)):
            pair = (np.uint64(genes[entry]) << np.uint64(32)) | np.uint64(bits[entry])
            first += _mix(pair)
            second += _mix(pair ^ np.uint64(0x6A09E667F3BCC908))
        hashes[cell, 0], hashes[cell, 1] = first, second
    return hashes


@numba.njit(nogil=True, cache=True, inline="always")
def _mix(value):  # type: ignore[no-untyped-def]
    mixed = value + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
