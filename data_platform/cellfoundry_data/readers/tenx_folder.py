"""10x Genomics count matrices as a folder of matrix-market text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ..errors import DataError
from .base import reading
from .location import children, name_of, suffix_of
from .matrix import RowReader
from .mtx_text import MtxHeader, entries, read_header
from .tenx import GENE_EXPRESSION, TenxSource
from .text import bounded_lines, open_bytes, open_text
from .unordered import rows_of_entries


class TenxFolderSource(TenxSource):
    """A folder with matrix.mtx, barcodes.tsv and features.tsv (version 3) or genes.tsv (2), gzipped or not.

    The entries of matrix-market text may come in any order, so they are sorted through a temporary file first.
    """

    format = "10x folder"
    kind = "a 10x matrix folder"
    row_access = False

    def __init__(self, path: str) -> None:
        with reading(path, self.kind):
            names = [child for child, is_folder in children(path) if not is_folder]
            self._matrix_path = _one_file(path, names, "matrix.mtx")
            features = _fields(_one_file(path, names, "features.tsv", "genes.tsv"))
            barcodes = [row[0] for row in _fields(_one_file(path, names, "barcodes.tsv"))]
        with reading(self._matrix_path, "a matrix-market file"), self._matrix() as (header, _):
            shape = header.n_rows, header.n_columns
        if shape != (len(features), len(barcodes)):
            raise DataError(
                f"{path}: the matrix is {shape[0]} x {shape[1]}, but there are {len(features)} features and "
                f"{len(barcodes)} barcodes."
            )
        super().__init__(
            path,
            barcodes,
            ids=[row[0] for row in features],
            symbols=[row[min(1, len(row) - 1)] for row in features],
            types=[row[2] if len(row) > 2 else GENE_EXPRESSION for row in features],
        )

    @contextmanager
    def _matrix(self) -> Iterator[tuple[MtxHeader, BinaryIO]]:
        with open_bytes(self._matrix_path, suffix_of(self._matrix_path).endswith(".gz")) as file:
            yield read_header(file), file

    @contextmanager
    def _rows(self, start: int, stop: int) -> Iterator[RowReader]:
        shape = self.n_cells, self.n_features
        with reading(self._matrix_path, "a matrix-market file"), self._matrix() as (header, file):
            by_cell = ((cells, genes, values) for genes, cells, values in entries(file, header))
            with rows_of_entries(by_cell, shape, start, stop) as read:
                yield lambda low, high: self.genes_only(read(low, high))


def is_tenx_folder(names: list[str]) -> bool:
    """Whether files of these names hold a matrix-market matrix."""
    return any(name.endswith(("matrix.mtx", "matrix.mtx.gz")) for name in names)


def _one_file(folder: str, paths: list[str], *endings: str) -> str:
    """The one file of the folder with such an ending; a prefix (GSM123_) and .gz are allowed."""
    accepted = tuple(ending + suffix for ending in endings for suffix in ("", ".gz"))
    files = [path for path in paths if path.endswith(accepted)]
    if len(files) != 1:
        found = f"several ({', '.join(name_of(file) for file in files)})" if files else "none"
        raise DataError(
            f"{folder}: a 10x matrix folder has one file {' or '.join(endings)}(.gz); found {found}."
        )
    return files[0]


def _fields(path: str) -> list[list[str]]:
    with open_text(path, suffix_of(path).endswith(".gz")) as text:
        lines = csv.reader(bounded_lines(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        return [fields for fields in lines if fields]
