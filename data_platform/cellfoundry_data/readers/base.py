"""What every reader gives: names, cell annotations and the matrix as a stream of sparse row blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from ..errors import DataError


class CountsSource(ABC):
    """A cells x genes matrix that is read block by block, top to bottom; holds no open file, so it pickles.

    Attributes:
        path: the source as the user gave it, for messages.
        gene_names: (columns,); empty where ``in_vocabulary_columns``.
        alternative_names: other names of the same columns (Ensembl ids beside symbols), each (columns,).
        obs_names: str, (cells,).
        obs: one row a cell, indexed by ``obs_names``; categorical columns stay categorical.
        n_columns: columns of the matrix.
        corner: what a table's first line calls the column of cell names; "" for other formats.
        in_vocabulary_columns: the columns have no names and are taken as the vocabulary's genes in order.

    Raises DataError where there is no cell or no column.
    """

    def __init__(
        self,
        path: str,
        *,
        obs: pd.DataFrame,
        gene_names: Sequence[str] = (),
        alternative_names: Iterable[Sequence[str]] = (),
        n_columns: int | None = None,
        corner: str = "",
    ) -> None:
        self.path = path
        self.gene_names = list(gene_names)
        self.alternative_names = [list(names) for names in alternative_names]
        self.corner = corner
        self.obs = obs
        self.obs_names: npt.NDArray[np.str_] = obs.index.to_numpy(dtype=str)
        self.in_vocabulary_columns = n_columns is not None
        self.n_columns = len(self.gene_names) if n_columns is None else n_columns
        if not self.n_cells or not self.n_columns:
            raise DataError(f"{path}: is empty, {self.n_cells} cells x {self.n_columns} genes.")

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.obs)

    @property
    def name(self) -> str:
        """Last part of the path, for messages about a row."""
        return Path(self.path).name

    @abstractmethod
    def blocks(self, block_cells: int = 4096) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield (first row, float32 CSR of at most ``block_cells`` rows) in row order.

        Memory is bounded by the block unless the reader's class says otherwise. Raises DataError where the
        file turns out to be damaged.
        """


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Turn whatever a file library raises into one DataError that names the file and the expected kind."""
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: cannot be read as {kind} because a name in it is not UTF-8 text; re-encode it as UTF-8."
        ) from error
    except Exception as error:  # h5py, zarr, numpy and zlib share no error class
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"{path}: cannot be read as {kind} ({reason}); it is damaged, truncated or of another format."
        ) from error


def row_ranges(n_cells: int, block_cells: int) -> Iterator[tuple[int, int]]:
    """Consecutive (start, stop) of at most ``block_cells`` rows."""
    for start in range(0, n_cells, block_cells):
        yield start, min(start + block_cells, n_cells)


def unnamed_cells(n_cells: int) -> pd.DataFrame:
    """obs of a format without cell names: the row numbers as text."""
    return pd.DataFrame(index=pd.Index([str(row) for row in range(n_cells)], dtype=object))


def named_cells(names: Sequence[str]) -> pd.DataFrame:
    """obs of a format that has cell names and nothing else."""
    return pd.DataFrame(index=pd.Index(list(names), dtype=object))
