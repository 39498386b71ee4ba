"""An AnnData object that is already in memory (or open in backed mode)."""

from __future__ import annotations

from collections.abc import Iterator

import anndata
import scipy.sparse as sp

from ..errors import DataError
from .anndata_group import name_columns
from .base import CountsSource, reading, row_ranges
from .matrix import checked_csr, dense_rows


class AnnDataSource(CountsSource):
    """One matrix of an AnnData object, ``X`` (layer None), ``raw`` or a layer: sparse or dense."""

    def __init__(self, adata: anndata.AnnData, layer: str | None = None) -> None:
        owner = adata.raw if layer == "raw" else adata
        if layer not in (None, "raw") and layer not in adata.layers:
            raise DataError(
                f"AnnData: has no layer {layer!r}; it holds {', '.join(adata.layers) or 'no layer'}."
            )
        matrix = None if owner is None else owner.X if layer in (None, "raw") else adata.layers[layer]
        if matrix is None:
            raise DataError(f"AnnData: has no {'X' if layer is None else layer!r} matrix.")
        self._matrix = matrix
        super().__init__(
            "AnnData",
            obs=adata.obs.set_axis(adata.obs_names.astype(str)),
            gene_names=owner.var_names.astype(str).tolist(),
            alternative_names=name_columns(owner.var),
        )

    def blocks(self, block_cells: int = 4096) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield (first row, float32 CSR) in row order; a CSC matrix is converted once, as a whole."""
        matrix = self._matrix.tocsr() if getattr(self._matrix, "format", None) == "csc" else self._matrix
        for start, stop in row_ranges(self.n_cells, block_cells):
            with reading(self.path, "an AnnData matrix"):
                if hasattr(matrix, "format"):
                    rows = sp.csr_matrix(matrix[start:stop])
                    block = checked_csr(rows.data, rows.indices, rows.indptr, self.n_columns)
                else:
                    block = dense_rows(matrix)(start, stop)
            yield start, block
