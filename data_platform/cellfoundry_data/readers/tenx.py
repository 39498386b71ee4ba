"""10x Genomics count matrices in HDF5: Cell Ranger .h5, versions 2 and 3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from ..errors import DataError
from .base import CountsSource, reading
from .complete import CompleteArray
from .hdf5 import open_hdf5
from .matrix import RowReader, compressed_rows, whole_array
from .names import as_texts

GENE_EXPRESSION = "Gene Expression"


class TenxSource(CountsSource):
    """Features may be antibodies or guides beside genes; only gene-expression columns are kept."""

    def __init__(
        self, path: str, barcodes: list[str], ids: list[str], symbols: list[str], types: list[str]
    ) -> None:
        genes = [column for column, kind in enumerate(types) if kind == GENE_EXPRESSION]
        if types and not genes:
            raise DataError(f"{path}: none of its {len(types)} features is of type {GENE_EXPRESSION!r}.")
        self.n_features = len(ids)
        self._gene_columns = None if len(genes) == len(ids) else np.array(genes)
        super().__init__(
            path,
            n_cells=len(barcodes),
            cell_names=barcodes,
            gene_names=[symbols[column] for column in genes],
            alternative_names=[[ids[column] for column in genes]],
        )

    def genes_only(self, block: sp.csr_matrix) -> sp.csr_matrix:
        """The gene-expression columns of a block of all features."""
        return block if self._gene_columns is None else block[:, self._gene_columns]


class TenxH5Source(TenxSource):
    """A Cell Ranger .h5 file; it is stored cell by cell, so it streams."""

    format = "10x h5"
    kind = "a 10x .h5 file"

    def __init__(self, path: str) -> None:
        with reading(path, self.kind), open_hdf5(path) as file:
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
            if not len(ids) == len(symbols) == len(types):
                raise ValueError(
                    f"it has {len(ids)} ids, {len(symbols)} names and {len(types)} types of features"
                )
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

    @contextmanager
    def _rows(self, start: int, stop: int) -> Iterator[RowReader]:
        with open_hdf5(self.path) as file:
            group = file[self._group]
            data, indices, indptr = (CompleteArray(group[name]) for name in ("data", "indices", "indptr"))
            read = compressed_rows(data, indices, indptr, self.n_cells, self.n_features)
            yield lambda low, high: self.genes_only(read(low, high))


def _texts(dataset: Any) -> list[str]:
    return as_texts(whole_array(CompleteArray(dataset)))
