"""The cells of a CellFoundry store as a source like any other, and the one door to both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.plan import source_names
from cellfoundry_data.joined_cells import JoinedCells
from cellfoundry_data.readers.expand import expand_sources
from cellfoundry_data.readers.formats import is_source
from cellfoundry_data.readers.location import as_location, has_wildcard, is_folder
from cellfoundry_data.source_cells import SourceCells, Values
from cellfoundry_data.store.format import MANIFEST, OBS_CELL_NAME
from cellfoundry_data.store.reader import open_store
from cellfoundry_data.vocabulary import Vocabulary


def is_store(path: str | Path) -> bool:
    """True for a folder with a store's manifest."""
    return (Path(path) / MANIFEST).is_file()


def open_cells(
    source: str | Path | AnnData | Sequence[str | Path],
    vocab: Vocabulary,
    *,
    values: Values = "counts",
    total_column: bool = False,
    layer: str | None = None,
) -> SourceCells | StoreCells | JoinedCells:
    """A store, or anything else that ``SourceCells`` takes, over a vocabulary's genes; arguments as there.

    A folder of sources, a pattern, or several of all these are joined (``listed_sources`` says in which order).

    Raises:
        DataError: it cannot be read, or is a store, which has neither layers nor totals, and is asked for one.
    """
    if isinstance(source, AnnData):
        return SourceCells(source, vocab, values=values, total_column=total_column, layer=layer)
    paths = listed_sources(source)
    cells = [_open_one(path, vocab, values, total_column, layer) for path in paths]
    return cells[0] if is_single(source) else JoinedCells(source_names(paths, set()), cells)


def is_single(source: str | Path | Sequence[str | Path]) -> bool:
    """Whether it names one store or source, and not a folder of sources, a pattern or several."""
    if not isinstance(source, str | Path):
        return len(source) == 1 and is_single(source[0])
    where = as_location(source)
    return not has_wildcard(where) and (is_store(where) or is_source(where) or not is_folder(where))


def listed_sources(source: str | Path | Sequence[str | Path]) -> list[str]:
    """Every store and source that is named, in the order of the arguments, those of a folder or pattern sorted.

    Raises:
        DataError: an argument that names none.
    """
    named = [source] if isinstance(source, str | Path) else source
    return [
        path
        for each in named
        for path in ([as_location(each)] if is_single(each) else expand_sources([each]))
    ]


def _open_one(
    path: str, vocab: Vocabulary, values: Values, total_column: bool, layer: str | None
) -> SourceCells | StoreCells:
    if not is_store(path):
        return SourceCells(path, vocab, values=values, total_column=total_column, layer=layer)
    if total_column or layer is not None:
        raise DataError(
            f"{path} is a store, which has no layers and no column of totals; leave out --layer and "
            "--pre-normalized A."
        )
    return StoreCells(path, vocab, normalized=values == "normalized")


class StoreCells:
    """Reads a store the way SourceCells reads a file.

    Args:
        path: folder of the store.
        vocab: the model's genes.
        normalized: the cells are taken as normalised values, else as raw counts; the store says what they are.

    Attributes:
        n_cells: cells of the store.
        row_access: whether ``blocks`` may start at any row without a scan.

    Raises:
        DataError: the store has another vocabulary than the model, or holds counts where normalised values are
            wanted, or the other way round; or it is damaged.
    """

    row_access = True

    def __init__(self, path: str | Path, vocab: Vocabulary, *, normalized: bool = False) -> None:
        self._store = open_store(path)
        if self._store.vocabulary.hash != vocab.hash:
            raise DataError(
                f"{path} was ingested with another vocabulary than the model's; ingest its sources again with "
                "the model's vocab.tsv, or embed the sources themselves."
            )
        if normalized and self._store.values == "counts":
            raise DataError(f"{path} is a store of raw counts; leave out --pre-normalized.")
        if not normalized and self._store.values != "counts":
            raise DataError(f"{path} is a store of normalised values; embed it with --pre-normalized T.")
        self.n_cells = self._store.n_cells

    @cached_property
    def obs(self) -> pd.DataFrame:
        """One row a cell, indexed by the cell's name in its source; read when first asked for."""
        obs = self._store.obs_frame().set_index(OBS_CELL_NAME)
        return obs.set_axis(obs.index.astype(str))

    def blocks(
        self, block_cells: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[CellBatch, None]]:
        """Yields (cells, None) of rows [start, stop) in store order; None stands where SourceCells may have totals."""
        stop = self.n_cells if stop is None else stop
        for first in range(start, stop, block_cells):
            yield self._store.read_cells(np.arange(first, min(first + block_cells, stop))), None
