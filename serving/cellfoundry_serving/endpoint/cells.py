"""Cells of a request, checked as strictly as a file's: CSR arrays or named genes become a CellBatch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.v2 import json_tensor


def cells_from_tensors(tensors: dict[str, npt.NDArray[Any]], n_genes: int, max_cells: int) -> CellBatch:
    """Inputs ``indptr`` INT64 (cells + 1,), ``gene_ids`` INT32 (nnz,) and ``counts`` FP32 (nnz,)."""
    wanted = {"indptr": np.int64, "gene_ids": np.int32, "counts": np.float32}
    if set(tensors) != set(wanted):
        raise RequestError("The inputs are indptr (INT64), gene_ids (INT32) and counts (FP32): CSR cells.")
    for name, dtype in wanted.items():
        if tensors[name].dtype != dtype:
            raise RequestError(f"Input {name!r} must be {np.dtype(dtype).name}.")
    indptr, gene_ids, counts = (tensors[name] for name in wanted)
    check_cells(len(indptr) - 1, max_cells)
    # Compared, not subtracted: a difference of two int64 can wrap around, and scipy would then read beyond its arrays.
    if indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any() or indptr[-1] != len(gene_ids):
        raise RequestError("indptr must start at 0, never fall, and end at the length of gene_ids.")
    if len(counts) != len(gene_ids):
        raise RequestError("gene_ids and counts must have the same length.")
    if len(gene_ids) and (gene_ids.min() < 0 or gene_ids.max() >= n_genes):
        raise RequestError(f"gene_ids must lie between 0 and {n_genes - 1}.")
    return checked_batch(indptr, gene_ids, counts, n_genes)


def listed_cells(document: dict[str, Any]) -> Any:
    """Takes the cells out of a native request: ``cells``, or ``genes`` with one row of ``counts`` or several.

    Returns what ``cells_from_json`` takes; RequestError where the document has neither or both.
    """
    if ("cells" in document) == ("genes" in document or "counts" in document):
        raise RequestError(
            "Give either 'cells', a list of {genes, counts}, or 'genes' and 'counts' for all cells."
        )
    if "cells" in document:
        return document.pop("cells")
    genes, counts = document.pop("genes", None), document.pop("counts", None)
    if isinstance(counts, list) and counts and all(isinstance(row, list) for row in counts):
        return [{"genes": genes, "counts": row} for row in counts]
    return [{"genes": genes, "counts": counts}]


def cells_from_json(cells: Any, index: dict[str, int], max_cells: int) -> CellBatch:
    """``[{"genes": [names], "counts": [numbers]}, ...]``; genes outside the vocabulary are dropped.

    RequestError where a cell with genes shares none with the vocabulary: its names are of another kind.
    """
    if not isinstance(cells, list):
        raise RequestError("'cells' must be a list of objects with 'genes' and 'counts'.")
    check_cells(len(cells), max_cells)
    gene_ids: list[int] = []
    counts: list[float] = []
    indptr = [0]
    for number, cell in enumerate(cells):
        genes, values = cell_lists(number, cell)
        known = [(index[gene], value) for gene, value in zip(genes, values, strict=True) if gene in index]
        if genes and not known:
            raise RequestError(f"Cell {number}: none of its {len(genes)} genes is in the model's vocabulary.")
        gene_ids.extend(gene for gene, _ in known)
        counts.extend(value for _, value in known)
        indptr.append(len(gene_ids))
    numbers = json_tensor(counts, np.dtype(np.float32))
    if numbers is None:
        raise RequestError("'counts' must be numbers that fit a float32.")
    return checked_batch(np.array(indptr), np.array(gene_ids, dtype=np.int32), numbers, len(index))


def cell_lists(number: int, cell: Any) -> tuple[list[str], list[Any]]:
    """Names and counts of one cell, of equal length."""
    genes = cell.get("genes") if isinstance(cell, dict) else None
    values = cell.get("counts") if isinstance(cell, dict) else None
    if not isinstance(genes, list) or not isinstance(values, list) or len(genes) != len(values):
        raise RequestError(f"Cell {number}: 'genes' and 'counts' must be lists of the same length.")
    if not all(isinstance(gene, str) for gene in genes):
        raise RequestError(f"Cell {number}: 'genes' must be names.")
    if not all(type(value) in (int, float) for value in values):
        raise RequestError(f"Cell {number}: 'counts' must be numbers.")
    return genes, values


def check_cells(cells: int, max_cells: int) -> None:
    """Between one cell and the limit."""
    if cells < 1:
        raise RequestError("The request has no cells.")
    if cells > max_cells:
        raise RequestError(
            f"The request has {cells} cells, the limit is {max_cells}; send fewer at once.", 413
        )


def checked_batch(
    indptr: npt.NDArray[np.int64],
    gene_ids: npt.NDArray[np.int32],
    counts: npt.NDArray[np.float32],
    n_genes: int,
) -> CellBatch:
    """Sorted, without zeros, repeated genes summed; RequestError unless the counts are raw counts."""
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts != np.rint(counts)).any():
        raise RequestError("counts must be raw counts: finite whole numbers, not negative.")
    if is_canonical(
        indptr, gene_ids, counts
    ):  # as clients of ours send it; sorting would take 180 us of a cell
        return CellBatch(indptr, gene_ids, counts, np.arange(len(indptr) - 1))
    cells = sp.csr_matrix((counts.copy(), gene_ids.copy(), indptr.copy()), shape=(len(indptr) - 1, n_genes))
    cells.sum_duplicates()
    cells.eliminate_zeros()
    if not np.isfinite(cells.data).all():
        raise RequestError("counts of a repeated gene add up to more than a float32 holds.")
    return CellBatch(
        cells.indptr.astype(np.int64),
        cells.indices.astype(np.int32),
        cells.data.astype(np.float32),
        np.arange(cells.shape[0]),
    )


def is_canonical(
    indptr: npt.NDArray[np.int64], gene_ids: npt.NDArray[np.int32], counts: npt.NDArray[np.float32]
) -> bool:
    """Whether each cell's genes ascend, none comes twice, and no count is zero."""
    rises = gene_ids[1:] > gene_ids[:-1]
    starts = indptr[(indptr > 0) & (indptr < len(gene_ids))] - 1  # from one cell to the next they may fall
    rises[starts] = True
    return bool(rises.all() and (counts > 0).all())
