"""Loom files: HDF5 with genes as rows and cells as columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from ..errors import DataError
from .anndata_group import matrix_name
from .base import CountsSource, reading
from .checks import as_float32
from .complete import CompleteArray
from .hdf5 import open_hdf5
from .matrix import DENSE_PIECE_BYTES, PIECE_ENTRIES, RowReader, whole_array
from .matrix_choice import holds_whole_numbers, preferred_order
from .names import as_texts
from .unordered import Entries, rows_of_entries

GENE_ATTRIBUTES = ("Gene", "gene_names", "gene_name", "var_names", "Accession")
CELL_ATTRIBUTES = ("CellID", "cell_names", "obs_names")
MAX_CHUNK_CELLS = 1024
"""With wider chunks a block of cells would decompress much of the file, so that it is sorted through a file."""


class LoomSource(CountsSource):
    """A .loom file: ``/matrix`` ("X") or one of its layers, genes x cells, dense.

    ``row_attrs`` of text name the genes, ``col_attrs`` are the obs. A file whose chunks hold few cells is read by
    blocks of cells; one that is stored gene by gene is sorted through a temporary file first.
    """

    format = "loom"
    kind = "a .loom file"

    def __init__(self, path: str, layer: str | None) -> None:
        with reading(path, self.kind), open_hdf5(path) as file:
            for key in ("matrix", "row_attrs", "col_attrs"):
                if key not in file:
                    raise DataError(f"{path}: has no {key!r}, so it is not {self.kind}.")
            names = ["X", *(f"layers/{name}" for name in file.get("layers", ()))]
            self.matrix_name = _chosen(file, names) if layer is None else matrix_name(layer)
            if self.matrix_name not in names:
                raise DataError(f"{path}: has no {self.matrix_name!r}; it holds {', '.join(names)}.")
            matrix = file[_key(self.matrix_name)]
            if len(matrix.shape) != 2:
                raise ValueError("its matrix does not have two dimensions")
            n_genes, n_cells = matrix.shape
            self.row_access = matrix.chunks is None or matrix.chunks[1] <= MAX_CHUNK_CELLS
            genes = {
                name: as_texts(whole_array(CompleteArray(node)))
                for name, node in file["row_attrs"].items()
                if node.shape == (n_genes,) and node.dtype.kind in "OSU"
            }
            self._cell_attribute = next((name for name in CELL_ATTRIBUTES if name in file["col_attrs"]), None)
        named = [name for name in GENE_ATTRIBUTES if name in genes] or sorted(genes)
        if not named:
            raise DataError(
                f"{path}: its row_attrs name no genes; Gene or Accession must hold {n_genes:,} names."
            )
        others = [names for name, names in sorted(genes.items()) if name != named[0]]
        super().__init__(path, n_cells=n_cells, gene_names=genes[named[0]], alternative_names=others)

    def obs_rows(self, start: int, stop: int) -> pd.DataFrame:
        """Annotation of cells [start, stop): the cells' names and every attribute of one value a cell."""
        with reading(self.path, self.kind), open_hdf5(self.path) as file:
            attributes = {
                name: _values(node, start, stop)
                for name, node in file["col_attrs"].items()
                if node.shape == (self.n_cells,)
            }
        frame = super().obs_rows(start, stop)
        names = attributes.pop(self._cell_attribute, frame.index)
        return pd.DataFrame(attributes, index=pd.Index(names, dtype=object).astype(str))

    @contextmanager
    def _rows(self, start: int, stop: int) -> Iterator[RowReader]:
        with open_hdf5(self.path) as file:
            matrix = file[_key(self.matrix_name)]
            as_float32(np.zeros(0, matrix.dtype))
            if self.row_access:
                yield _cells_of_columns(matrix)
                return
            with rows_of_entries(_entries(matrix), (self.n_cells, self.n_columns), start, stop) as read:
                yield read


def _cells_of_columns(matrix: h5py.Dataset) -> RowReader:
    n_genes = matrix.shape[0]
    width = matrix.chunks[1] if matrix.chunks else 1
    piece = max(1, DENSE_PIECE_BYTES // (n_genes * matrix.dtype.itemsize * width)) * width

    def read(low: int, high: int) -> sp.csr_matrix:
        edges = sorted({low, *range(low // piece * piece + piece, high, piece), high})
        pieces = [sp.csr_matrix(as_float32(matrix[:, first:last]).T) for first, last in pairwise(edges)]
        return sp.vstack(pieces, format="csr")

    return read


def _entries(matrix: h5py.Dataset) -> Iterator[Entries]:
    """Non-zeros in pieces of a few genes."""
    n_genes, n_cells = matrix.shape
    height, width = max(1, PIECE_ENTRIES // n_cells), min(n_cells, PIECE_ENTRIES)
    for gene in range(0, n_genes, height):
        for cell in range(0, n_cells, width):
            values = as_float32(matrix[gene : gene + height, cell : cell + width])
            genes, cells = np.nonzero(values)
            yield cells + cell, genes + gene, values[genes, cells]


def _key(name: str) -> str:
    return "matrix" if name == "X" else name


def _chosen(file: h5py.File, names: list[str]) -> str:
    ordered = preferred_order(names)
    return next((name for name in ordered if len(names) > 1 and holds_whole_numbers(file[_key(name)])), "X")


def _values(node: Any, start: int, stop: int) -> npt.NDArray[Any]:
    values = np.asarray(node[start:stop])
    return values if values.dtype.kind in "biuf" else np.array(as_texts(values), dtype=object)
