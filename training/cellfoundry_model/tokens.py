"""From a ragged batch of cells to encoder tokens, by the input conventions of the official embedding script.

Legend: N tokens over all cells, C cells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.errors import ModelError

InputType = Literal["singlecell", "bulk"]
PreNormalized = Literal["F", "T", "A"]
FloatArray = npt.NDArray[np.float64]

# Counts per cell after normalisation, before log1p.
NORMALIZED_TOTAL = 1e4
_TARGET = re.compile(r"([tfa])(-?[0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Tokens:
    """Packed encoder tokens: a cell's expressed genes in ascending position, then T, then S.

    Attributes:
        value_N: float32, (N,); log1p expression, or the log10 totals of T and S.
        position_N: int64, (N,); gene id, n_genes for T, n_genes + 1 for S.
        cu_seqlens: int32, (C + 1,); cell ``i`` owns tokens ``cu_seqlens[i]:cu_seqlens[i + 1]``.
        max_seqlen: tokens of the longest cell.
    """

    value_N: npt.NDArray[np.float32]
    position_N: npt.NDArray[np.int64]
    cu_seqlens: npt.NDArray[np.int32]
    max_seqlen: int

    def select(self, cells: npt.NDArray[np.int64]) -> Tokens:
        """The tokens of these cells (positions in the batch), in that order."""
        lengths = np.diff(self.cu_seqlens)[cells]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
        taken = np.repeat(self.cu_seqlens[:-1][cells] - cu_seqlens[:-1], lengths) + np.arange(cu_seqlens[-1])
        longest = int(lengths.max(initial=0))
        return Tokens(self.value_N[taken], self.position_N[taken], cu_seqlens.astype(np.int32), longest)


def tokenize(
    batch: CellBatch,
    *,
    n_genes: int,
    target: str = "t4",
    input_type: InputType = "singlecell",
    pre_normalized: PreNormalized = "F",
    totals: npt.ArrayLike | None = None,
    bulk_median: float | None = None,
) -> Tokens:
    """Turn cells into encoder tokens.

    singlecell: "F" takes counts, x = log1p(count / total * 1e4); "T" takes x as given, total = sum of x; "A"
    takes x as given and the total count beside it. S = log10(total); T by ``target``.
    bulk: "F" scales every row to ``bulk_median``, log1p, T = S = log10(sum of the row); "T" takes x as given,
    T = S = sum of x; ``target`` plays no part. A cell without positive values gets T and S of NaN.

    Args:
        batch: cells over a vocabulary of ``n_genes`` genes; all sums are over these genes.
        n_genes: position of T.
        target: "tN": T = N; "fN": T = log10(total * N); "aN": T = log10(total) + N.
        input_type: "singlecell" or "bulk".
        pre_normalized: "F", "T" or "A".
        totals: total count of each cell, (C,); for "A" only.
        bulk_median: median total over all rows of the source with counts; for bulk "F" only.

    Raises:
        ModelError: an unknown convention or target, or totals or median missing or not positive,
            or a gene outside the vocabulary.
    """
    if batch.nnz and batch.gene_ids.max() >= n_genes:
        raise ModelError(
            f"the cells use gene {batch.gene_ids.max()} but the model has {n_genes:,} genes (from 0); "
            "align them to the model's vocabulary."
        )
    cell_N = np.repeat(np.arange(len(batch)), np.diff(batch.indptr))
    x_N = batch.counts.astype(np.float64)
    sums_C = _positive_sums(x_N, cell_N, len(batch))
    if input_type == "bulk":
        x_N, t_C = _bulk(x_N, sums_C, cell_N, pre_normalized, bulk_median)
        s_C = t_C
    elif input_type == "singlecell":
        totals_C = _checked_totals(totals, batch) if pre_normalized == "A" else sums_C
        if pre_normalized == "F":
            x_N = np.log1p(x_N / sums_C[cell_N] * NORMALIZED_TOTAL)
        elif pre_normalized not in ("T", "A"):
            raise ModelError(f"pre-normalized is {pre_normalized!r}; use F, T or A.")
        s_C = np.log10(totals_C)
        t_C = _target_depth(target, s_C)
        t_C[np.isnan(sums_C)] = s_C[np.isnan(sums_C)] = np.nan
    else:
        raise ModelError(f"input type is {input_type!r}; use singlecell or bulk.")
    return _pack(batch, cell_N, x_N, t_C, s_C, n_genes)


def _bulk(
    x_N: FloatArray,
    sums_C: FloatArray,
    cell_N: npt.NDArray[np.int64],
    pre_normalized: PreNormalized,
    bulk_median: float | None,
) -> tuple[FloatArray, FloatArray]:
    """Values and T (= S) of bulk rows."""
    if pre_normalized == "T":
        return x_N, sums_C
    if pre_normalized != "F":
        raise ModelError(f"pre-normalized is {pre_normalized!r}; use F or T with input type bulk.")
    if bulk_median is None or not 0 < bulk_median < np.inf:
        raise ModelError(
            f"bulk input needs the median of its rows' totals, a positive number, and got {bulk_median!r}; "
            "give it as bulk_median."
        )
    x_N = np.log1p(x_N / sums_C[cell_N] * bulk_median)
    return x_N, np.log10(_positive_sums(x_N, cell_N, len(sums_C)))


def _positive_sums(x_N: FloatArray, cell_N: npt.NDArray[np.int64], cells: int) -> FloatArray:
    """Sum of each cell's values; NaN, which log10 passes on silently, where nothing is there."""
    sums_C = np.bincount(cell_N, weights=x_N, minlength=cells).astype(np.float64)
    return np.where(sums_C > 0, sums_C, np.nan)


def _checked_totals(totals: npt.ArrayLike | None, batch: CellBatch) -> FloatArray:
    if totals is None:
        raise ModelError("pre-normalized A needs each cell's total count and none was given; give totals.")
    totals_C = np.asarray(totals, dtype=np.float64)
    if totals_C.shape != (len(batch),):
        raise ModelError(
            f"totals have shape {totals_C.shape} for {len(batch)} cells; give one total count a cell."
        )
    wrong = np.flatnonzero(~(np.isfinite(totals_C) & (totals_C > 0)) & (np.diff(batch.indptr) > 0))
    if wrong.size:
        raise ModelError(
            f"the total count of row {batch.row_ids[wrong[0]]} is {totals_C[wrong[0]]:g}; "
            "give the cell's raw total, a positive number."
        )
    return np.where(totals_C > 0, totals_C, np.nan)


def _target_depth(target: str, s_C: FloatArray) -> FloatArray:
    """T of every cell from S by the forms tN, fN and aN."""
    match = _TARGET.fullmatch(target)
    form, number = (match[1], float(match[2])) if match else ("", 0.0)
    if not form or (form == "f" and number <= 0):
        raise ModelError(
            f"target is {target!r}; use tN (log10 total N), fN (N times the cell's total, N > 0) or "
            "aN (log10 total plus N), for example t4, f1 or a5."
        )
    if form == "t":
        return np.full_like(s_C, number)
    return s_C + (np.log10(number) if form == "f" else number)


def _pack(
    batch: CellBatch,
    cell_N: npt.NDArray[np.int64],
    x_N: FloatArray,
    t_C: FloatArray,
    s_C: FloatArray,
    n_genes: int,
) -> Tokens:
    """Drop values that are not positive and put T and S behind each cell's genes."""
    kept = x_N > 0
    genes_C = np.bincount(cell_N[kept], minlength=len(batch))
    cu_seqlens = np.concatenate([[0], np.cumsum(genes_C + 2)])
    last_C = cu_seqlens[1:]
    is_gene = np.ones(cu_seqlens[-1], dtype=bool)
    is_gene[last_C - 2] = is_gene[last_C - 1] = False
    value_N = np.empty(cu_seqlens[-1], dtype=np.float32)
    position_N = np.empty(cu_seqlens[-1], dtype=np.int64)
    value_N[is_gene], position_N[is_gene] = x_N[kept], batch.gene_ids[kept]
    value_N[last_C - 2], position_N[last_C - 2] = t_C, n_genes
    value_N[last_C - 1], position_N[last_C - 1] = s_C, n_genes + 1
    longest = int(genes_C.max(initial=0)) + 2
    return Tokens(value_N, position_N, cu_seqlens.astype(np.int32), longest)
