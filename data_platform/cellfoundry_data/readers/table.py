"""Delimited text, one line a cell: .csv and .tsv, gzipped or not."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import scipy.sparse as sp

from ..errors import DataError
from .base import CountsSource, reading
from .location import suffix_of
from .matrix import RowReader
from .text import bounded_lines, open_text

PIECE_VALUES = 2**22  # parsed at once: 16 MiB of float32 beside their text
CORNERS = ("", "barcode", "barcodes", "cell", "cell_id", "cellid", "cells", "index", "unnamed: 0")
"""What tools write above the cell names, in lower case."""
_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')


class TableSource(CountsSource):
    """A text table, cells x genes: gene names in the first line, cell names in the first column.

    The file is gone through twice, once for the cell names and once for the values (numpy's C parser, about
    20 M values a second), and never held as a whole. The first line may lack the field above the cell names.
    """

    format = "table"
    kind = "a table of cells x genes"
    row_access = False

    def __init__(self, path: str) -> None:
        self._gzipped = suffix_of(path).endswith(".gz")
        self._delimiter = "," if suffix_of(path).startswith(".csv") else "\t"
        with reading(path, self.kind), self._lines(path) as lines:
            header = next(csv.reader([next(lines, "")], delimiter=self._delimiter), [])
            first = next(lines, "")
            fields = len(next(csv.reader([first], delimiter=self._delimiter), []))
            cells = [self._split(line)[0] for line in (first, *lines) if line.strip()] if first else []
        headless = fields == len(header) + 1 and header[0].strip().lower() not in CORNERS
        corner, genes = ("", header) if headless else ("".join(header[:1]), header[1:])
        if cells and not genes:
            raise DataError(
                f"{path}: its first line names no genes; fields must be separated by {self._delimiter!r}."
            )
        super().__init__(path, n_cells=len(cells), cell_names=cells, gene_names=genes, corner=corner)

    @contextmanager
    def _lines(self, path: str) -> Iterator[Iterator[str]]:
        """The file's lines without their ends; blank ones left out."""
        with open_text(path, self._gzipped) as text:
            yield (line.rstrip("\r\n") for line in bounded_lines(text) if line.strip())

    def _split(self, line: str) -> tuple[str, str]:
        """Cell name and the rest of a line; a quoted name may contain the delimiter, and quotes as two."""
        if quoted := _QUOTED.match(line):
            return quoted[1].replace('""', '"'), line[quoted.end() + len(self._delimiter) :]
        name, _, rest = line.partition(self._delimiter)
        return name, rest

    @contextmanager
    def _rows(self, start: int, stop: int) -> Iterator[RowReader]:
        piece_rows = max(1, PIECE_VALUES // self.n_columns)
        with self._lines(self.path) as lines:
            next(islice(lines, start, start + 1))  # skips the first line and the rows before

            def read(low: int, high: int) -> sp.csr_matrix:
                pieces = [
                    self._parse(
                        row, [self._split(line)[1] for line in islice(lines, min(piece_rows, high - row))]
                    )
                    for row in range(low, high, piece_rows)
                ]
                return sp.vstack(pieces, format="csr")

            yield read

    def _parse(self, first_row: int, rows: list[str]) -> sp.csr_matrix:
        for offset, row in enumerate(rows):
            columns = row.count(self._delimiter) + 1 if row else 0
            if columns != self.n_columns:
                raise DataError(
                    f"{self.name}: row {self._row_name(first_row + offset)} has {columns:,} values where the "
                    f"first line names {self.n_columns:,} genes."
                )
        try:
            values = np.loadtxt(
                rows, np.float32, delimiter=self._delimiter, comments=None, quotechar='"', ndmin=2
            )
        except ValueError as error:
            raise self._not_a_number(first_row, rows) from error
        return sp.csr_matrix(values)

    def _not_a_number(self, first_row: int, rows: list[str]) -> DataError:
        for offset, row in enumerate(rows):
            for gene, text in zip(self.gene_names, row.split(self._delimiter), strict=True):
                try:
                    float(text.strip().strip('"'))
                except ValueError:
                    return DataError(
                        f"{self.name}: row {self._row_name(first_row + offset)}, gene {gene} has the value "
                        f"{text!r}, which is not a number."
                    )
        return DataError(f"{self.name}: the rows from {first_row} on cannot be parsed as numbers.")

    def _row_name(self, row: int) -> str:
        return f"{row} ({self.obs_rows(row, row + 1).index[0]})"
