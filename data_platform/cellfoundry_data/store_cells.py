"""The cells of a CellFoundry store as a source like any other, and the one door to both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.source_cells import SourceCells, Values
from cellfoundry_data.store.format import MANIFEST, OBS_CELL_NAME
from cellfoundry_data.store.reader import open_store
from cellfoundry_data.vocabulary import Vocabulary


def is_store(path: str | Path) -> bool:
    """True for a folder with a store's manifest."""
    return (Path(path) / MANIFEST).is_file()


def open_cells(
    source: str | Path | AnnData,
    vocab: Vocabulary,
    *,
    values: Values = "counts",
    total_column: bool = False,
    layer: str | None = None,
) -> SourceCells | StoreCells:
    """A store, or anything else that ``SourceCells`` takes, over a vocabulary's genes; arguments as there.

    Raises:
        DataError: it cannot be read, or is a store, which has neither layers nor totals, and is asked for one.
    """
    if isinstance(source, AnnData) or not is_store(source):
        return SourceCells(source, vocab, values=values, total_column=total_column, layer=layer)
    if total_column or layer is not None:
        raise DataError(
            f"{source} is a store, which has no layers and no column of totals; leave out --layer and "
            "--pre-normalized A."
        )
    return StoreCells(source, vocab, normalized=values == "normalized")


class StoreCells:
    """Reads a store the way SourceCells reads a file.

    Args:
        path: folder of the store.
        vocab: the model's genes.
        normalized: the cells are taken as normalised values, else as raw counts; the store says what they are.

    Attributes:
        n_cells: cells of the store.
        obs: one row a cell, indexed by the cell's name in its source.

    Raises:
        DataError: the store has another vocabulary than the model, or holds counts where normalised values are
            wanted, or the other way round; or it is damaged.
    """

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
        self.obs: pd.DataFrame = self._store.obs_frame().set_index(OBS_CELL_NAME)
        self.obs.index = self.obs.index.astype(str)

    def blocks(self, block_cells: int) -> Iterator[tuple[CellBatch, None]]:
        """Yields (cells, None) in store order; None stands where SourceCells may have totals."""
        for first in range(0, self.n_cells, block_cells):
            yield self._store.read_cells(np.arange(first, min(first + block_cells, self.n_cells))), None
