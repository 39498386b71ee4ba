"""An AnnData object that is already in memory (or open in backed mode)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anndata
import pandas as pd
import scipy.sparse as sp

from ..errors import DataError
from .anndata_frame import name_columns
from .anndata_group import matrix_name
from .base import CountsSource
from .matrix import RowReader, checked_csr, dense_rows
from .matrix_choice import holds_whole_numbers, preferred_order

NAMELESS = "cellfoundry_nameless"
"""uns key of an AnnData that holds the matrix of a file without gene names (.npy, .npz): that file's name. Its columns
are the vocabulary's genes in order, as the file's are."""


class AnnDataSource(CountsSource):
    """One matrix of an AnnData object, ``X`` (layer None), ``raw`` or a layer: sparse or dense."""

    format = "memory"
    kind = "an AnnData matrix"

    def __init__(self, adata: anndata.AnnData, layer: str | None = None) -> None:
        self.matrix_name = _chosen(adata) if layer is None else matrix_name(layer)
        matrix = _matrix(adata, self.matrix_name)
        if matrix is None:
            held = ", ".join(_names(adata)) or "no matrix"
            raise DataError(f"AnnData: has no {self.matrix_name!r}; it holds {held}.")
        self._matrix = matrix
        self._obs = adata.obs.set_axis(adata.obs_names.astype(str))
        owner = adata.raw if self.matrix_name == "raw" else adata
        if NAMELESS in adata.uns:
            super().__init__(adata.uns[NAMELESS], n_cells=adata.n_obs, n_columns=owner.n_vars)
            return
        super().__init__(
            "AnnData",
            n_cells=adata.n_obs,
            gene_names=owner.var_names.astype(str).tolist(),
            alternative_names=name_columns(owner.var),
        )

    def obs_rows(self, start: int, stop: int) -> pd.DataFrame:
        """Annotation of cells [start, stop)."""
        return self._obs.iloc[start:stop]

    @contextmanager
    def _rows(self, start: int, stop: int) -> Iterator[RowReader]:
        matrix = self._matrix
        if (
            getattr(matrix, "format", None) == "csc"
        ):  # it is in memory already, or is too slow to read by rows
            matrix = (matrix.to_memory() if hasattr(matrix, "to_memory") else matrix).tocsr()

        def sparse_rows(low: int, high: int) -> sp.csr_matrix:
            rows = sp.csr_matrix(matrix[low:high])
            return checked_csr(rows.data, rows.indices, rows.indptr, self.n_columns)

        yield sparse_rows if hasattr(matrix, "format") else dense_rows(matrix)


def _matrix(adata: anndata.AnnData, name: str) -> Any:
    if name == "raw":
        return None if adata.raw is None else adata.raw.X
    return adata.X if name == "X" else adata.layers.get(name.removeprefix("layers/"))


def _names(adata: anndata.AnnData) -> list[str]:
    names = ["X", "raw", *(f"layers/{name}" for name in adata.layers)]
    return [name for name in names if _matrix(adata, name) is not None]


def _chosen(adata: anndata.AnnData) -> str:
    """The first matrix of whole numbers; X, or else the first matrix, where there is none."""
    names = preferred_order(_names(adata))
    return next((name for name in names if len(names) > 1 and _whole(_matrix(adata, name))), [*names, "X"][0])


def _whole(matrix: Any) -> bool:
    """A backed sparse matrix shows its values as an array in the file."""
    if not hasattr(matrix, "format"):
        return holds_whole_numbers(matrix)
    return holds_whole_numbers(matrix.group["data"] if hasattr(matrix, "group") else matrix.data)
