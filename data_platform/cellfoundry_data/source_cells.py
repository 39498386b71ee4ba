"""One source as checked, vocabulary-aligned cell batches: the only door into the platform."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from .batch import CellBatch
from .errors import DataError
from .readers import CountsSource, open_source
from .readers.memory import AnnDataSource
from .vocabulary import GeneAlignment, Vocabulary, align, find_genes

Values = Literal["counts", "normalized"]


class SourceCells:
    """The cells of a file or an AnnData object over a vocabulary's genes.

    Columns of the same gene are summed, which one UserWarning says; genes the source lacks are zeros; columns
    outside the vocabulary are dropped.

    Args:
        source: a path (see ``readers.open_source``) or an AnnData object.
        vocab: the target gene axis.
        values: "counts" refuses non-integers; "normalized" takes any finite value >= 0.
        total_column: the last column holds each cell's total count and is split off (``--pre-normalized A``).
        layer: which matrix of an AnnData; None is ``X``.

    Attributes:
        n_cells: number of cells.
        obs: one row a cell.
        obs_names: str, (cells,).
        alignment: where each gene column went.
        counts_read: sum of all values that ``blocks`` has read so far, columns outside the vocabulary included.

    Raises:
        DataError: the source cannot be read or shares no gene with the vocabulary; ``blocks`` raises it for a
            negative, NaN or infinite value and, for counts, a non-integer.
    """

    def __init__(
        self,
        source: str | Path | anndata.AnnData,
        vocab: Vocabulary,
        *,
        values: Values = "counts",
        total_column: bool = False,
        layer: str | None = None,
    ) -> None:
        self._source: CountsSource = (
            AnnDataSource(source, layer)
            if isinstance(source, anndata.AnnData)
            else open_source(source, layer=layer)
        )
        self._vocab = vocab
        self._values = values
        self._total_column = total_column
        self.n_cells = self._source.n_cells
        self.obs: pd.DataFrame = self._source.obs
        self.obs_names = self._source.obs_names
        self.alignment = self._align()
        self.counts_read = 0.0
        if self.alignment.duplicates:
            warnings.warn(
                f"{self._source.name}: {self.alignment.duplicates} gene columns repeat a gene that another "
                "column holds; their values were summed.",
                UserWarning,
                stacklevel=2,
            )

    def blocks(self, block_cells: int = 4096) -> Iterator[tuple[CellBatch, npt.NDArray[np.float64] | None]]:
        """Yield (cells, total counts) of at most ``block_cells`` cells in row order.

        ``row_ids`` are rows of the source. Totals are float64, (cells,), or None without ``total_column``.
        """
        for first_row, block in self._source.blocks(block_cells):
            totals = None
            if self._total_column:
                totals = block[:, [-1]].toarray().ravel().astype(np.float64)
                self._check_totals(first_row, totals)
                block = block[:, :-1]
            self._check_values(first_row, block)
            self.counts_read += float(block.data.sum(dtype=np.float64))
            yield aligned_cells(block, self.alignment.column_to_gene, len(self._vocab), first_row), totals

    def _align(self) -> GeneAlignment:
        source, n_genes = self._source, self._source.n_columns - self._total_column
        if source.in_vocabulary_columns:
            if n_genes != len(self._vocab):
                extra = " and one of totals" if self._total_column else ""
                raise DataError(
                    f"{source.path}: has {source.n_columns:,} columns, but a file without gene names must "
                    f"have the vocabulary's {len(self._vocab):,} genes as columns{extra}."
                )
            return GeneAlignment(np.arange(n_genes, dtype=np.int32), n_genes, 0, 0)
        if self._total_column and source.gene_names[-1] in self._vocab.index:
            raise DataError(
                f"{source.path}: its last column is gene {source.gene_names[-1]}, but with --pre-normalized "
                "A it must hold the total counts."
            )
        if (find_genes([source.corner], self._vocab) >= 0).all():
            raise DataError(
                f"{source.path}: its first column is gene {source.corner}, but a table's first column holds the "
                "cell names; write the table with its row names."
            )
        try:
            return align(
                source.gene_names[:n_genes],
                self._vocab,
                [names[:n_genes] for names in source.alternative_names],
            )
        except DataError as error:
            hint = self._transposed_hint()
            raise DataError(f"{source.path}: {str(error).removesuffix('.')}{hint}.") from error

    def _transposed_hint(self) -> str:
        """What to add to the message of a matrix without a known gene among its columns."""
        first_rows = self.obs_names[:1000]
        genes = first_rows[find_genes(first_rows.tolist(), self._vocab) >= 0]
        if not len(genes):
            return ""
        return f"; its rows are named after genes ({', '.join(genes[:3])}), so transpose it to cells x genes"

    def _check_values(self, first_row: int, block: sp.csr_matrix) -> None:
        name, values = self._source.name, block.data
        if not len(values):
            return
        # min and max propagate NaN, so two passes without a mask clear a sound block.
        if not (values.min() >= 0 and values.max() < np.inf):
            entry = int(np.argmin(np.isfinite(values) & (values >= 0)))
            limit = "counts cannot be negative" if values[entry] < 0 else "values must be finite"
            row, gene = self._locate(first_row, block, entry)
            raise DataError(f"{name}: row {row}, gene {gene} has the value {values[entry]:g}; {limit}.")
        if self._values == "counts":
            fractional = values != np.rint(values)
            if fractional.any():
                entry = int(np.argmax(fractional))
                row, gene = self._locate(first_row, block, entry)
                raise DataError(
                    f"{name}: the values look already normalised (row {row}, gene {gene} = "
                    f"{values[entry]:g}); give raw counts (--layer names another matrix of the file), or embed "
                    "log-normalised values with --pre-normalized T."
                )

    def _check_totals(self, first_row: int, totals: npt.NDArray[np.float64]) -> None:
        bad = ~(np.isfinite(totals) & (totals >= 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{self._source.name}: row {self._row_name(first_row + row)} has the total count "
                f"{totals[row]:g} in its last column; totals must be finite and not negative."
            )

    def _locate(self, first_row: int, block: sp.csr_matrix, entry: int) -> tuple[str, str]:
        """Row and gene of one stored entry, as messages name them."""
        row = int(np.searchsorted(block.indptr, entry, side="right")) - 1
        column = int(block.indices[entry])
        names = self._vocab.genes if self._source.in_vocabulary_columns else self._source.gene_names
        return self._row_name(first_row + row), names[column]

    def _row_name(self, row: int) -> str:
        return f"{row} ({self.obs_names[row]})"


def aligned_cells(
    block: sp.csr_matrix, column_to_gene: npt.NDArray[np.int32], n_genes: int, first_row: int = 0
) -> CellBatch:
    """Move a block's columns to their genes: zeros and dropped columns go, equal genes are summed.

    Args:
        block: float32 CSR, (cells, columns), values >= 0.
        column_to_gene: int32, (columns,); -1 drops a column.
        n_genes: size of the vocabulary.
        first_row: row id of the block's first cell.
    """
    genes = column_to_gene[block.indices]
    kept = np.flatnonzero((genes >= 0) & (block.data != 0))
    indptr = np.searchsorted(kept, block.indptr)
    aligned = sp.csr_matrix((block.data[kept], genes[kept], indptr), shape=(block.shape[0], n_genes))
    aligned.sum_duplicates()  # sorts each cell by gene, too
    return CellBatch(
        indptr=aligned.indptr.astype(np.int64),
        gene_ids=aligned.indices.astype(np.int32, copy=False),
        counts=aligned.data,
        row_ids=np.arange(first_row, first_row + block.shape[0], dtype=np.int64),
    )
