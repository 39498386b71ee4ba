"""The AnnData layout inside an HDF5 file or a Zarr group: names, obs and the chosen matrix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pandas as pd

from ..errors import DataError
from .anndata_frame import check_table, is_array, n_rows, read_rows, row_names, text_columns
from .base import CountsSource, reading
from .complete import CompleteArray
from .matrix import RowReader, column_major_rows, compressed_rows, dense_rows
from .matrix_choice import holds_whole_numbers, preferred_order


class AnnDataGroupSource(CountsSource):
    """One matrix of a stored AnnData: ``X``, ``raw`` or a layer.

    CSR and dense matrices are read by rows. A CSC matrix is stored gene by gene, so it is sorted through a temporary
    file first.
    """

    def __init__(self, path: str, layer: str | None) -> None:
        with reading(path, self.kind), self._open(path) as root:
            for key in ("obs", "var"):
                if key not in root:
                    raise DataError(f"{path}: has no {key!r}, so it is not {self.kind}.")
            self.matrix_name = _chosen(root, path) if layer is None else matrix_name(layer)
            key = _key(self.matrix_name)
            if key not in root:
                raise DataError(
                    f"{path}: has no {key!r}; it holds {', '.join(_matrix_names(root)) or 'no matrix'}."
                )
            var = "raw/var" if self.matrix_name == "raw" else "var"
            for table in ("obs", var):
                check_table(root, table, path)
            matrix, n_cells, n_genes = root[key], n_rows(root["obs"]), n_rows(root[var])
            if _shape(matrix) != (n_cells, n_genes):
                raise DataError(
                    f"{path}: {key!r} has shape {_shape(matrix)}, but obs has {n_cells} rows and var {n_genes}."
                )
            self.row_access = is_array(matrix) or _encoding(matrix) != "csc"
            super().__init__(
                path,
                n_cells=n_cells,
                gene_names=row_names(root[var]),
                alternative_names=text_columns(root[var]),
            )

    @abstractmethod
    def _open(self, path: str) -> AbstractContextManager[Any]:
        """The file's root group, closed at the end of the block."""

    def obs_rows(self, start: int, stop: int) -> pd.DataFrame:
        """Annotation of cells [start, stop); only these rows are read."""
        with reading(self.path, self.kind), self._open(self.path) as root:
            return read_rows(root["obs"], start, stop)

    @contextmanager
    def _rows(self, start: int, stop: int) -> Iterator[RowReader]:
        with self._open(self.path) as root:
            node = root[_key(self.matrix_name)]
            if is_array(node):
                yield dense_rows(CompleteArray(node))
                return
            data, indices, indptr = (node[name] for name in ("data", "indices", "indptr"))
            # Zarr writers leave out chunks of zeros: offsets of no entries, row or column indices of a single one.
            if data.shape[0]:
                data, indptr = CompleteArray(data), CompleteArray(indptr)
            shape, encoding = (self.n_cells, self.n_columns), _encoding(node)
            if shape[encoding != "csc"] > 1:
                indices = CompleteArray(indices)
            if encoding == "csr":
                yield compressed_rows(data, indices, indptr, *shape)
            elif encoding == "csc":
                with column_major_rows(data, indices, indptr, shape, start, stop) as read:
                    yield read
            else:
                raise ValueError(
                    f"the matrix has the encoding {encoding!r} where csr, csc or dense is understood"
                )


def matrix_name(layer: str) -> str:
    """Name of the matrix that a layer option asks for: "X", "raw", a layer's name, or "layers/<name>"."""
    return layer if layer in ("X", "raw") or layer.startswith("layers/") else f"layers/{layer}"


def _key(name: str) -> str:
    return "raw/X" if name == "raw" else name


def _chosen(root: Any, path: str) -> str:
    """The first matrix of whole numbers; X, or else the first matrix, where there is none."""
    names = preferred_order(_matrix_names(root))
    if not names:
        raise DataError(f"{path}: has no 'X'; it holds no matrix.")
    return next((name for name in names if len(names) > 1 and _whole(root[_key(name)])), names[0])


def _whole(node: Any) -> bool:
    return holds_whole_numbers(node if is_array(node) else node["data"])


def _matrix_names(root: Any) -> list[str]:
    layers = [f"layers/{name}" for name in root.get("layers", ())]
    return [name for name in ("X", "raw") if _key(name) in root] + layers


def _shape(node: Any) -> tuple[int, ...]:
    shape = node.shape if is_array(node) else node.attrs.get("shape", node.attrs.get("h5sparse_shape"))
    if shape is None:
        raise ValueError(f"{node.name} is neither an array nor a sparse matrix")
    return tuple(int(size) for size in shape)


def _encoding(node: Any) -> str:
    return str(node.attrs.get("encoding-type", node.attrs.get("h5sparse_format"))).removesuffix("_matrix")
