"""What every reader gives: names, cell annotations and the matrix as a stream of sparse row blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from ..errors import DataError
from ..urls import is_url
from .location import name_of
from .matrix import RowReader

MAX_CELLS = 2**32
"""Forty times the cells of the largest atlas."""
MAX_COLUMNS = 2**24
"""Sixteen times the columns of the widest assays (peaks of accessibility)."""


class CountsSource(ABC):
    """A cells x genes matrix that is read block by block, top to bottom; holds no open file, so it pickles.

    Attributes:
        path: the source as the user gave it, for messages.
        format: short name of the file format ("h5ad", "10x h5", ...).
        kind: what the file is, for messages.
        row_access: a block from the middle costs no scan of what is before it, so several processes can share
            the rows of one source.
        matrix_name: which of its matrices is read: "X", "raw" or "layers/<name>".
        n_cells: number of cells.
        gene_names: (columns,); empty where ``in_vocabulary_columns``.
        alternative_names: other names of the same columns (Ensembl ids beside symbols), each (columns,).
        n_columns: columns of the matrix.
        corner: what a table's first line calls the column of cell names; "" for other formats.
        in_vocabulary_columns: the columns have no names and are taken as the vocabulary's genes in order.

    Args:
        path: see above.
        n_cells: see above.
        cell_names: of all cells, for formats that have names and no other annotation.
        gene_names: see above.
        alternative_names: see above.
        n_columns: for a matrix without gene names.
        corner: see above.

    Raises DataError where there is no cell or no column.
    """

    format: str
    kind: str
    row_access = True
    matrix_name = "X"

    def __init__(
        self,
        path: str,
        *,
        n_cells: int,
        cell_names: Sequence[str] | None = None,
        gene_names: Sequence[str] = (),
        alternative_names: Iterable[Sequence[str]] = (),
        n_columns: int | None = None,
        corner: str = "",
    ) -> None:
        self.path = path
        self.n_cells = n_cells
        self._cell_names = cell_names
        self.gene_names = list(gene_names)
        self.alternative_names = [list(names) for names in alternative_names]
        self.corner = corner
        self.in_vocabulary_columns = n_columns is not None
        self.n_columns = len(self.gene_names) if n_columns is None else n_columns
        if not self.n_cells or not self.n_columns:
            raise DataError(f"{path}: is empty, {self.n_cells} cells x {self.n_columns} genes.")
        if self.n_cells > MAX_CELLS or self.n_columns > MAX_COLUMNS:
            raise DataError(
                f"{path}: says it has {self.n_cells:,} cells x {self.n_columns:,} genes, more than any measurement; "
                "it is damaged."
            )

    @property
    def name(self) -> str:
        """Last part of the path, for messages about a row."""
        return name_of(self.path)

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Annotation of all cells, one row a cell; read when first asked for."""
        return self.obs_rows(0, self.n_cells)

    @property
    def obs_names(self) -> npt.NDArray[np.str_]:
        """Names of all cells, (cells,)."""
        return self.obs.index.to_numpy(dtype=str)

    def obs_rows(self, start: int, stop: int) -> pd.DataFrame:
        """Annotation of cells [start, stop), indexed by their names; categorical columns stay categorical.

        A format without cell names has the row numbers as text. Raises DataError where it cannot be read.
        """
        names = self._cell_names
        index = [str(row) for row in range(start, stop)] if names is None else list(names[start:stop])
        return pd.DataFrame(index=pd.Index(index, dtype=object))

    def blocks(
        self, block_cells: int = 4096, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield (first row, float32 CSR of at most ``block_cells`` rows) of rows [start, stop), in order.

        Columns may come unsorted and repeated, where the file has them so. Memory is bounded by the block.
        Raises DataError where the file turns out to be damaged.
        """
        stop = self.n_cells if stop is None else min(stop, self.n_cells)
        if start >= stop:
            return
        with reading(self.path, self.kind), self._rows(start, stop) as read:
            for low in range(start, stop, block_cells):
                yield low, read(low, min(low + block_cells, stop))

    @abstractmethod
    def _rows(self, start: int, stop: int) -> AbstractContextManager[RowReader]:
        """Open the matrix to read consecutive ranges of rows [start, stop), each once, top to bottom."""


@contextmanager
def reading(path: str, kind: str) -> Iterator[None]:
    """Turn whatever a file library raises into one DataError that names the file and the expected kind."""
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: cannot be read as {kind} because a name in it is not UTF-8 text; re-encode it as UTF-8."
        ) from error
    except Exception as error:  # h5py, zarr, numpy, pyarrow, fsspec and zlib share no error class
        reason = next(iter(str(error).splitlines()), "").rstrip(". ") or type(error).__name__
        server = "its server cannot be reached or refuses, or " if is_url(path) else ""
        raise DataError(
            f"{path}: cannot be read as {kind} ({reason}); {server}it is damaged, truncated or of another format."
        ) from error
