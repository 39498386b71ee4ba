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

from .aliases import Aliases
from .aligned_cells import COUNT_LIMIT, BadEntryError, aligned_cells
from .batch import CellBatch
from .errors import DataError, FractionError
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
        layer: which matrix: "X", "raw" or a layer's name. None is the first that holds whole numbers, with a
            UserWarning where that is not ``X``; for "normalized" values it is always ``X``.
        aliases: other names of genes, see ``vocabulary.align``.
        alignment: that of the same source when it was opened before, which need not be found again.

    Attributes:
        n_cells: number of cells.
        format: short name of the source's format.
        matrix_name: which of its matrices is read: "X", "raw" or "layers/<name>".
        row_access: whether ``blocks`` may start at any row without a scan.
        obs: one row a cell.
        obs_names: str, (cells,).
        alignment: where each gene column went.
        counts_read: sum of all values that ``blocks`` has read so far, columns outside the vocabulary included.

    Raises:
        DataError: the source cannot be read or shares no gene with the vocabulary; ``blocks`` raises it for a
            negative, NaN or infinite value and, for counts, a fraction or a value from 2**32 on. Counts
            are float32, so those above 2**24 are rounded to 24 bits.
    """

    def __init__(
        self,
        source: str | Path | anndata.AnnData,
        vocab: Vocabulary,
        *,
        values: Values = "counts",
        total_column: bool = False,
        layer: str | None = None,
        aliases: Aliases | None = None,
        alignment: GeneAlignment | None = None,
    ) -> None:
        wanted = "X" if layer is None and values == "normalized" else layer
        self._source: CountsSource = (
            AnnDataSource(source, wanted)
            if isinstance(source, anndata.AnnData)
            else open_source(source, layer=wanted)
        )
        self._vocab = vocab
        self._values = values
        self._total_column = total_column
        self.n_cells = self._source.n_cells
        self.format = self._source.format
        self.matrix_name = self._source.matrix_name
        self.row_access = self._source.row_access
        self.alignment = self._known(alignment) if alignment else self._align(aliases)
        self.counts_read = 0.0
        if wanted is None and self.matrix_name != "X":
            warnings.warn(
                f"{self._source.name}: reads {self.matrix_name}, the first of its matrices that holds whole numbers; "
                "--layer X reads X.",
                UserWarning,
                stacklevel=2,
            )
        if self.alignment.duplicates:
            warnings.warn(
                f"{self._source.name}: {self.alignment.duplicates} gene columns repeat a gene that another "
                "column holds; their values were summed.",
                UserWarning,
                stacklevel=2,
            )

    @property
    def obs(self) -> pd.DataFrame:
        """One row a cell; read when first asked for."""
        return self._source.obs

    @property
    def obs_names(self) -> npt.NDArray[np.str_]:
        """Names of the cells, (cells,)."""
        return self._source.obs_names

    def obs_rows(self, start: int, stop: int) -> pd.DataFrame:
        """obs of cells [start, stop); of a large source only these rows are read and held."""
        return self._source.obs_rows(start, stop)

    def blocks(
        self, block_cells: int = 4096, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[CellBatch, npt.NDArray[np.float64] | None]]:
        """Yield (cells, total counts) of at most ``block_cells`` cells of rows [start, stop), in order.

        ``row_ids`` are rows of the source. Totals are float64, (cells,), or None without ``total_column``.
        """
        for first_row, block in self._source.blocks(block_cells, start, stop):
            totals = None
            if self._total_column:
                totals = block[:, [-1]].toarray().ravel().astype(np.float64)
                self._check_totals(first_row, totals)
                block = block[:, :-1]
            try:
                cells, total = aligned_cells(
                    block,
                    self.alignment.column_to_gene,
                    len(self._vocab),
                    first_row,
                    counts=self._values == "counts",
                )
            except BadEntryError as error:
                raise self._bad_value(first_row, block, error) from None
            self.counts_read += total
            yield cells, totals

    def _known(self, alignment: GeneAlignment) -> GeneAlignment:
        if len(alignment.column_to_gene) != self._source.n_columns - self._total_column:
            raise DataError(
                f"{self._source.path}: was changed since it was opened; run the same command again."
            )
        return alignment

    def _align(self, aliases: Aliases | None) -> GeneAlignment:
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
                aliases,
            )
        except DataError as error:
            hint = self._transposed_hint()
            raise DataError(f"{source.path}: {str(error).removesuffix('.')}{hint}.") from error

    def _transposed_hint(self) -> str:
        """What to add to the message of a matrix without a known gene among its columns."""
        first_rows = self.obs_rows(0, min(1000, self.n_cells)).index.tolist()
        found = find_genes(first_rows, self._vocab) >= 0
        genes = [name for name, is_gene in zip(first_rows, found, strict=True) if is_gene]
        if not genes:
            return ""
        return f"; its rows are named after genes ({', '.join(genes[:3])}), so transpose it to cells x genes"

    def _bad_value(self, first_row: int, block: sp.csr_matrix, error: BadEntryError) -> DataError:
        row, gene = self._locate(first_row, block, error.entry)
        value = f"{block.data[error.entry]:g}"
        if error.problem == "fraction":
            where = f"row {row}, gene {gene} = {value}"
            return FractionError(
                f"{self._source.name}: the values look already normalised ({where}); give "
                "raw counts (--layer names another matrix of the file), or take the values as they are: "
                "`embed --pre-normalized T` where they are log-normalised, `data ingest --values float32`.",
                where,
            )
        limit = {
            "negative": "counts cannot be negative",
            "not finite": "values must be finite",
            "too large": f"a gene's counts must stay below {COUNT_LIMIT:,.0f}",
        }[error.problem]
        return DataError(f"{self._source.name}: row {row}, gene {gene} has the value {value}; {limit}.")

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
        return f"{row} ({self.obs_rows(row, row + 1).index[0]})"
