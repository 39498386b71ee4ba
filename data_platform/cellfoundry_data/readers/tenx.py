"""10x Genomics count matrices: Cell Ranger .h5 (versions 2 and 3) and matrix-market folders."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.sparse as sp

from ..errors import DataError
from .base import CountsSource, named_cells, reading, row_ranges
from .matrix import checked_csr, compressed_rows

GENE_EXPRESSION = "Gene Expression"


class _TenxSource(CountsSource):
    """Features may be antibodies or guides beside genes; only gene-expression columns are kept."""

    def __init__(
        self, path: str, barcodes: list[str], ids: list[str], symbols: list[str], types: list[str]
    ) -> None:
        genes = [column for column, kind in enumerate(types) if kind == GENE_EXPRESSION]
        if types and not genes:
            raise DataError(f"{path}: none of its {len(types)} features is of type {GENE_EXPRESSION!r}.")
        self._n_features = len(ids)
        self._gene_columns = None if len(genes) == len(ids) else np.array(genes)
        super().__init__(
            path,
            obs=named_cells(barcodes),
            gene_names=[symbols[column] for column in genes],
            alternative_names=[[ids[column] for column in genes]],
        )

    def _genes_only(self, block: sp.csr_matrix) -> sp.csr_matrix:
        return block if self._gene_columns is None else block[:, self._gene_columns]


class TenxH5Source(_TenxSource):
    """A Cell Ranger .h5 file; it is stored cell by cell, so it streams."""

    kind = "a 10x .h5 file"

    def __init__(self, path: str) -> None:
        with reading(path, self.kind), h5py.File(path, "r") as file:
            if "X" in file and "obs" in file:
                raise DataError(f"{path}: is an AnnData file; rename it to end in .h5ad.")
            self._group = self._find_group(file, path)
            group = file[self._group]
            barcodes = _texts(group["barcodes"])
            if "features" in group:
                features = group["features"]
                ids, symbols = _texts(features["id"]), _texts(features["name"])
                types = _texts(features["feature_type"])
            else:
                ids, symbols = _texts(group["genes"]), _texts(group["gene_names"])
                types = [GENE_EXPRESSION] * len(ids)
            shape = tuple(int(size) for size in group["shape"][:])
            if shape != (len(ids), len(barcodes)) or len(group["indptr"]) != len(barcodes) + 1:
                raise DataError(
                    f"{path}: its shape {shape} does not fit {len(ids)} features and {len(barcodes)} "
                    "barcodes."
                )
            super().__init__(path, barcodes, ids, symbols, types)

    @staticmethod
    def _find_group(file: h5py.File, path: str) -> str:
        groups = [name for name in file if isinstance(file[name], h5py.Group) and "barcodes" in file[name]]
        if len(groups) != 1:
            found = f"several genomes ({', '.join(groups)})" if groups else "no group with barcodes"
            raise DataError(f"{path}: a 10x .h5 file holds one count matrix, this one has {found}.")
        return groups[0]

    def blocks(self, block_cells: int = 4096) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield (first row, float32 CSR) in row order."""
        with reading(self.path, self.kind), h5py.File(self.path, "r") as file:
            group = file[self._group]
            read = compressed_rows(group["data"], group["indices"], group["indptr"], self._n_features)
            for start, stop in row_ranges(self.n_cells, block_cells):
                yield start, self._genes_only(read(start, stop))


class TenxFolderSource(_TenxSource):
    """A folder with matrix.mtx, barcodes.tsv and features.tsv (version 3) or genes.tsv (2), gzipped or not.

    Matrix-market text has no index, so the matrix is loaded as a whole: 32 bytes a non-zero at the peak.
    """

    kind = "a 10x matrix folder"

    def __init__(self, path: str) -> None:
        folder = Path(path)
        with reading(path, self.kind):
            self._matrix_path = _one_file(folder, "matrix.mtx")
            features = _rows(_one_file(folder, "features.tsv", "genes.tsv"))
            barcodes = [row[0] for row in _rows(_one_file(folder, "barcodes.tsv"))]
            shape = scipy.io.mminfo(self._matrix_path)[:2]
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

    def blocks(self, block_cells: int = 4096) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield (first row, float32 CSR) in row order."""
        with reading(self._matrix_path, "a matrix-market file"):
            cells = sp.csr_matrix(scipy.io.mmread(self._matrix_path).T)
            matrix = self._genes_only(checked_csr(cells.data, cells.indices, cells.indptr, self._n_features))
        for start, stop in row_ranges(self.n_cells, block_cells):
            yield start, matrix[start:stop]


def is_tenx_folder(folder: Path) -> bool:
    """Whether a folder holds a matrix-market matrix."""
    return any(folder.glob("*matrix.mtx*"))


def _texts(dataset: Any) -> list[str]:
    return dataset.asstr()[:].tolist()


def _one_file(folder: Path, *endings: str) -> Path:
    """The one file of the folder with such an ending; a prefix (GSM123_) and .gz are allowed."""
    files = sorted(
        file for ending in endings for suffix in ("", ".gz") for file in folder.glob(f"*{ending}{suffix}")
    )
    if len(files) != 1:
        found = f"several ({', '.join(file.name for file in files)})" if files else "none"
        raise DataError(
            f"{folder}: a 10x matrix folder has one file {' or '.join(endings)}(.gz); found {found}."
        )
    return files[0]


def _rows(path: Path) -> list[list[str]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    return [row for row in csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE) if row]
