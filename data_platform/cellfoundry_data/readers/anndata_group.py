"""The AnnData layout inside an HDF5 file or a Zarr group: names, obs and the chosen matrix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem

from ..errors import DataError
from .base import CountsSource, reading, row_ranges
from .matrix import RowReader, compressed_columns, compressed_rows, dense_rows


class AnnDataGroupSource(CountsSource):
    """One matrix of a stored AnnData: ``X``, ``raw`` or a layer.

    CSR and dense matrices stream. A CSC matrix is stored gene by gene, so it is loaded as a whole and
    converted (16 bytes a non-zero at the peak).
    """

    kind: str

    def __init__(self, path: str, layer: str | None) -> None:
        self._matrix_key = {None: "X", "raw": "raw/X"}.get(layer, f"layers/{layer}")
        with reading(path, self.kind), self._open(path) as root:
            for key in ("obs", "var"):
                if key not in root:
                    raise DataError(f"{path}: has no {key!r}, so it is not {self.kind}.")
            if self._matrix_key not in root:
                raise DataError(
                    f"{path}: has no {self._matrix_key!r}; it holds {', '.join(_matrix_keys(root))}."
                )
            obs = _table(root, "obs", path)
            var = _table(root, "raw/var" if layer == "raw" else "var", path)
            shape = _shape(root[self._matrix_key])
        if shape != (len(obs), len(var)):
            raise DataError(
                f"{path}: {self._matrix_key!r} has shape {shape}, but obs has {len(obs)} rows and var "
                f"{len(var)}."
            )
        super().__init__(path, obs=obs, gene_names=var.index.tolist(), alternative_names=name_columns(var))

    @abstractmethod
    def _open(self, path: str) -> AbstractContextManager[Any]:
        """The file's root group, closed at the end of the block."""

    def blocks(self, block_cells: int = 4096) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield (first row, float32 CSR) in row order."""
        with reading(self.path, self.kind), self._open(self.path) as root:
            read = _row_reader(root[self._matrix_key])
            for start, stop in row_ranges(self.n_cells, block_cells):
                yield start, read(start, stop)


def name_columns(var: pd.DataFrame) -> list[list[str]]:
    """The text columns of var: any of them may hold the genes' ids or symbols."""
    return [
        column.astype(str).tolist()
        for _, column in var.items()
        if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(column.dtype)
    ]


def _table(root: Any, key: str, path: str) -> pd.DataFrame:
    table = read_elem(root[key])
    if not isinstance(table, pd.DataFrame):
        raise DataError(
            f"{path}: {key!r} has the layout of anndata before 0.7; re-save it with a newer anndata."
        )
    table.index = table.index.astype(str)
    return table


def _matrix_keys(root: Any) -> list[str]:
    layers = [f"layer {name!r}" for name in root.get("layers", ())]
    return [key for key in ("X", "raw") if key in root] + layers or ["no matrix"]


def _is_array(node: Any) -> bool:
    return hasattr(node, "dtype")


def _shape(node: Any) -> tuple[int, ...]:
    shape = node.shape if _is_array(node) else node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
    return tuple(int(size) for size in shape)


def _row_reader(node: Any) -> RowReader:
    if _is_array(node):
        return dense_rows(node)
    n_rows, n_columns = _shape(node)
    encoding = str(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format"))).removesuffix("_matrix")
    if node["indptr"].shape[0] != (n_columns if encoding == "csc" else n_rows) + 1:
        raise ValueError("the number of row offsets does not fit the shape")
    triple = node["data"], node["indices"], node["indptr"]
    if encoding == "csr":
        return compressed_rows(*triple, n_columns)
    if encoding == "csc":
        return compressed_columns(*triple, n_rows, n_columns)
    raise ValueError(
        f"the matrix has the encoding {encoding!r} where csr, csc or a dense array is understood"
    )
