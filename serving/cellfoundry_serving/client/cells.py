"""Cells as users have them, cut into what one request holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import pandas as pd
from anndata import AnnData

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.token_batches import consecutive, token_counts

Cells: TypeAlias = AnnData | CellBatch | tuple[Sequence[str], Any]
"""An AnnData with raw counts, a batch over the model's vocabulary, or (gene names, counts matrix cells x genes)."""

REQUEST_TOKENS = 262_144
"""A sixteenth of what may wait at the endpoint by default, 16 of its batches: four requests at once leave room for
other clients."""


def request_batches(
    cells: AnnData | CellBatch, vocabulary: Vocabulary | None, request_cells: int
) -> Iterator[CellBatch]:
    """Batches over the vocabulary of ``REQUEST_TOKENS`` tokens and ``request_cells`` cells at most, in order.

    They are made one by one, so only what is being sent is held twice. Raises DataError for values that are no raw
    counts, or no gene in common with the vocabulary.
    """
    for batch in blocks(cells, vocabulary):
        for part in consecutive(token_counts(batch), REQUEST_TOKENS, request_cells):
            yield batch.between(part.start, part.stop)


def blocks(cells: AnnData | CellBatch, vocabulary: Vocabulary | None) -> Iterator[CellBatch]:
    """The cells over the vocabulary, which a CellBatch is already."""
    if isinstance(cells, CellBatch):
        yield cells
    else:
        assert vocabulary is not None
        for batch, _ in SourceCells(cells, vocabulary).blocks():
            yield batch


def as_source(cells: Cells) -> AnnData | CellBatch:
    """A pair of names and counts as an AnnData; anything else as it is."""
    if isinstance(cells, AnnData | CellBatch):
        return cells
    genes, counts = cells
    return AnnData(counts, var=pd.DataFrame(index=list(genes)))


def own_genes(adata: AnnData) -> Vocabulary:
    """The names of all genes that an AnnData has, in ``raw`` too: for cells whose genes the endpoint looks up."""
    raw = [] if adata.raw is None else adata.raw.var_names.astype(str)
    return Vocabulary(tuple(dict.fromkeys([*adata.var_names.astype(str), *raw])))
