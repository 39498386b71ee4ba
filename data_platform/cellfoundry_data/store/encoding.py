"""Cells to bytes and back: gene ids as differences, counts as bytes, both with escapes
(docs/store-format.md).

0.98 bytes an entry after zstd on real-like counts, against 2.4 for 16-bit counts with 32-bit ids. Numba
without the GIL: a row is decoded straight into its place in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from cellfoundry_data.store.format import COUNT_ESCAPE, ESCAPE, GENE_ESCAPE, ROW

# What decode_rows answers.
DECODED, TOO_FEW_ESCAPES, GENE_OUT_OF_RANGE = range(3)


@dataclass(frozen=True)
class EncodedCells:
    """Cells as the arrays of one shard.

    Attributes:
        gene_delta: uint8, (chunks, chunk_nnz), zero-padded.
        count: uint8, (chunks, chunk_nnz), zero-padded.
        gene_delta_escape: uint32, the differences of 255 and more, in order.
        count_escape: uint32, the counts of 255 and more, in order.
        row_nnz: uint32, (cells,).
        chunk_start: int64, (chunks + 1, 3): rows, gene escapes and count escapes before each chunk; the last
            row is the totals.
    """

    gene_delta: npt.NDArray[np.uint8]
    count: npt.NDArray[np.uint8]
    gene_delta_escape: npt.NDArray[np.uint32]
    count_escape: npt.NDArray[np.uint32]
    row_nnz: npt.NDArray[np.uint32]
    chunk_start: npt.NDArray[np.int64]


def pack_rows(indptr: npt.NDArray[np.int64], chunk_nnz: int) -> npt.NDArray[np.int64]:
    """First row of each chunk, and the number of rows at the end: rows in order, as many to a chunk as fit
    whole.
    """
    rows = len(indptr) - 1
    firsts = [0]
    while firsts[-1] < rows:
        limit = indptr[firsts[-1]] + chunk_nnz
        firsts.append(int(np.searchsorted(indptr, limit, side="right")) - 1)
    return np.array(firsts, np.int64)


def encode(
    indptr: npt.NDArray[np.int64],
    gene_ids: npt.NDArray[np.int32],
    counts: npt.NDArray[np.uint32],
    chunk_nnz: int,
) -> EncodedCells:
    """Encode CSR rows, gene ids ascending strictly in each; a chunk grows to the largest row where that
    exceeds ``chunk_nnz``.
    """
    row_nnz = np.diff(indptr)
    chunk_nnz = max(chunk_nnz, int(row_nnz.max(initial=0)))
    first_rows = pack_rows(indptr, chunk_nnz)
    chunks = len(first_rows) - 1

    deltas = np.diff(gene_ids, prepend=np.int32(0)).astype(np.uint32)
    starts = indptr[:-1][row_nnz > 0]
    deltas[starts] = gene_ids[starts]

    chunk_start = np.zeros((chunks + 1, 3), np.int64)
    chunk_start[:, ROW] = first_rows
    gene_delta = np.zeros((chunks, chunk_nnz), np.uint8)
    count = np.zeros((chunks, chunk_nnz), np.uint8)
    for chunk in range(chunks):
        first, last = indptr[first_rows[chunk]], indptr[first_rows[chunk + 1]]
        for values, stream, column in ((deltas, gene_delta, GENE_ESCAPE), (counts, count, COUNT_ESCAPE)):
            entries = values[first:last]
            stream[chunk, : last - first] = np.minimum(entries, ESCAPE)
            chunk_start[chunk + 1, column] = chunk_start[chunk, column] + np.count_nonzero(entries >= ESCAPE)
    return EncodedCells(
        gene_delta,
        count,
        deltas[deltas >= ESCAPE],
        counts[counts >= ESCAPE],
        row_nnz.astype(np.uint32),
        chunk_start,
    )


@numba.njit(nogil=True, cache=True)
def decode_rows(
    gene_delta: npt.NDArray[np.uint8],
    count: npt.NDArray[np.uint8],
    gene_delta_escape: npt.NDArray[np.uint32],
    count_escape: npt.NDArray[np.uint32],
    row_nnz: npt.NDArray[np.uint32],
    destination: npt.NDArray[np.int64],
    n_genes: int,
    gene_ids: npt.NDArray[np.int32],
    counts: npt.NDArray[np.float32],
) -> int:
    """Decode the rows of one chunk, row ``i`` to ``gene_ids[destination[i]:]`` and
    ``counts[destination[i]:]``.

    A negative destination leaves the row out. The escapes are those of this chunk. Answers DECODED, or why
    the bytes are not those of a store: nothing outside the arrays is ever touched.
    """
    start = np.int64(0)
    gene_escapes = np.int64(0)
    count_escapes = np.int64(0)
    for row in range(len(row_nnz)):
        stop = start + np.int64(row_nnz[row])
        # Slices and a plain loop a stream: LLVM turns the second loop into vector code, 3 times as fast.
        deltas, row_counts = gene_delta[start:stop], count[start:stop]
        start = stop
        if destination[row] < 0:
            gene_escapes += np.count_nonzero(deltas == ESCAPE)
            count_escapes += np.count_nonzero(row_counts == ESCAPE)
            continue
        end = destination[row] + len(deltas)
        row_genes, row_values = gene_ids[destination[row] : end], counts[destination[row] : end]
        gene = np.int32(0)
        for entry in range(len(deltas)):
            delta = np.int32(deltas[entry])
            if delta == ESCAPE:
                if gene_escapes >= len(gene_delta_escape):
                    return TOO_FEW_ESCAPES
                if gene + np.int64(gene_delta_escape[gene_escapes]) >= n_genes:
                    return GENE_OUT_OF_RANGE
                delta = np.int32(gene_delta_escape[gene_escapes])
                gene_escapes += 1
            gene += delta
            row_genes[entry] = gene
        if gene >= n_genes:
            return GENE_OUT_OF_RANGE
        largest = np.uint8(0)
        for entry in range(len(row_counts)):
            largest = max(largest, row_counts[entry])
            row_values[entry] = np.float32(row_counts[entry])
        if largest == ESCAPE:
            for entry in range(len(row_counts)):
                if row_counts[entry] == ESCAPE:
                    if count_escapes >= len(count_escape):
                        return TOO_FEW_ESCAPES
                    row_values[entry] = np.float32(count_escape[count_escapes])
                    count_escapes += 1
    return DECODED
