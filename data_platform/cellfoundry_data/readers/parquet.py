"""Counts in long form as Parquet: a row is a cell, a gene and a count."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from .base import CountsSource, reading
from .checks import as_float32
from .location import children, is_folder, name_of, open_binary, suffix_of
from .matrix import PIECE_ENTRIES, RowReader
from .unordered import Entries, rows_of_entries

CELL_COLUMNS = ("cell", "cell_id", "barcode")
GENE_COLUMNS = ("gene", "gene_name", "symbol", "feature", "gene_id")
COUNT_COLUMNS = ("count", "counts", "value", "umi")
READ_BYTES = 2**22
"""Read at once of a column: else whole column chunks are held, and a file may be one row group."""


class ParquetSource(CountsSource):
    """A Parquet file, or a folder of such files as one source; its rows may come in any order.

    Cells and genes are numbered as they first come. The file is gone through twice, once for the names and once for
    the entries, which are sorted through a temporary file. A gene that comes twice in a cell is summed. The files
    of a folder share no cell, but for one whose entries were cut between two files that follow each other: cells of
    several samples may have the same barcodes.
    """

    format = "parquet"
    kind = "a Parquet table of cell, gene and count"
    row_access = False

    def __init__(self, path: str) -> None:
        self._parts = parquet_parts(path) if is_folder(path) else [path]
        if not self._parts:
            raise DataError(f"{path}: holds no .parquet file.")
        self._cells: dict[str, int] = {}
        self._genes: dict[str, int] = {}
        known: list[int] = []  # cells known before each part
        last = -1  # cell of the part's last row
        for part in self._parts:
            known.append(len(self._cells))
            allowed = None
            with reading(part, self.kind):
                for cells, genes in self._batches(part, _columns(part)[:2]):
                    _number(cells, self._cells)
                    _number(genes, self._genes)
                    numbers = _numbers(cells, self._cells)
                    if not len(numbers):
                        continue
                    if allowed is None:
                        allowed = last if numbers[0] == last else -1
                    repeated = numbers[(numbers < known[-1]) & (numbers != allowed)]
                    if len(repeated):
                        raise self._repeated(path, int(repeated[0]), part, known)
                    last = int(numbers[-1])
        super().__init__(
            path, n_cells=len(self._cells), cell_names=list(self._cells), gene_names=list(self._genes)
        )

    def _repeated(self, folder: str, cell: int, part: str, known: list[int]) -> DataError:
        first = self._parts[bisect_right(known, cell) - 1]
        return DataError(
            f"{folder}: cell {list(self._cells)[cell]} is in {name_of(first)} and in {name_of(part)}, and the files "
            f"of a folder are one source; name the files with {folder.rstrip('/')}/*.parquet to take them as separate "
            "sources."
        )

    def _batches(self, part: str, columns: list[str]) -> Iterator[list[pa.Array]]:
        with ExitStack() as opened:
            source = opened.enter_context(open_binary(part))
            file = pq.ParquetFile(
                source, read_dictionary=columns[:2], buffer_size=READ_BYTES, pre_buffer=False
            )
            for batch in file.iter_batches(PIECE_ENTRIES, columns=columns, use_threads=False):
                for name in columns:
                    if batch[name].null_count:
                        raise ValueError(f"column {name!r} has empty fields")
                yield [batch[name] for name in columns]

    @contextmanager
    def _rows(self, start: int, stop: int) -> Iterator[RowReader]:
        with rows_of_entries(self._entries(), (self.n_cells, self.n_columns), start, stop) as read:
            yield read

    def _entries(self) -> Iterator[Entries]:
        for part in self._parts:
            with reading(part, self.kind):
                for cells, genes, counts in self._batches(part, _columns(part)):
                    values = as_float32(counts.to_numpy(zero_copy_only=False))
                    yield _numbers(cells, self._cells), _numbers(genes, self._genes), values


def parquet_parts(folder: str) -> list[str]:
    """The .parquet files of a folder; none where it holds other files or folders, too."""
    inside = children(folder)
    parts = [path for path, is_dir in inside if not is_dir and suffix_of(path) == ".parquet"]
    return parts if len(parts) == len(inside) else []


def _columns(part: str) -> list[str]:
    """What the file calls the cells, the genes and the counts."""
    with open_binary(part) as file:
        names = pq.ParquetFile(file).schema_arrow.names
    lower = {name.lower(): name for name in reversed(names)}
    found = []
    for accepted in (CELL_COLUMNS, GENE_COLUMNS, COUNT_COLUMNS):
        name = next((lower[name] for name in accepted if name in lower), None)
        if name is None:
            raise DataError(
                f"{part}: has no column named {' or '.join(accepted)}; it has {', '.join(names[:10]) or 'none'}."
            )
        found.append(name)
    return found


def _names(column: pa.Array) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The distinct names of a column as text, and each row's position among them."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return encoded.dictionary.cast(pa.string()).to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _number(column: pa.Array, numbers: dict[str, int]) -> None:
    """Give new names the next numbers, in the order in which the rows have them."""
    names, codes = _names(column)
    first = np.full(len(names), len(codes))
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of equal positions the last assignment stays
    for code in np.argsort(first)[: np.count_nonzero(first < len(codes))]:
        numbers.setdefault(names[code], len(numbers))


def _numbers(column: pa.Array, numbers: Mapping[str, int]) -> npt.NDArray[np.int64]:
    names, codes = _names(column)
    return np.array([numbers.get(name, -1) for name in names], np.int64)[codes]
