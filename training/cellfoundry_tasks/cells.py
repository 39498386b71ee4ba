"""Cells of a task: raw counts in memory with the obs columns that the task needs.

Legend: C cells, G genes of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cellfoundry_data.readers import open_source
from cellfoundry_data.readers.memory import NAMELESS, AnnDataSource
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.quiet import quiet

Source: TypeAlias = str | Path | ad.AnnData

REPEATED_GENES = "Variable names are not unique"
"""How anndata's warning of names begins that the vocabulary's alignment needs as they are: it sums their columns."""
NAMED_VALUES = 10
"""Of a column with more values a message names so many."""


def check_is_there(source: Source, public: str) -> None:
    """TaskError, which ends with where ``public`` data for the task is, where a local file is missing."""
    if not isinstance(source, ad.AnnData) and "://" not in str(source) and not Path(source).exists():
        raise TaskError(f"{source}: there is no such file; {public}")


def read_counts(source: Source, *, layer: str | None = None, public: str = "give raw counts") -> ad.AnnData:
    """Raw counts of all genes of a source, float32 CSR (C, G) in ``X``, with its obs; the argument stays as it is.

    ``var`` names the genes as the source does, repeated names included, and holds its other names of them, so
    that a vocabulary finds and sums what it does in the source; a matrix without names stays one without (NAMELESS).
    ``public`` says where data for the task is, to users who have none.

    Raises:
        DataError: it cannot be read.
        TaskError: a value is negative, not finite or no whole number, or a cell has no counts.
    """
    check_is_there(source, public)
    read = (
        AnnDataSource(source, layer) if isinstance(source, ad.AnnData) else open_source(source, layer=layer)
    )
    counts_CG = sp.vstack([block for _, block in read.blocks()], format="csr")
    counts_CG.sum_duplicates()
    value = counts_CG.data
    if not (np.isfinite(value).all() and (value >= 0).all() and (value == np.floor(value)).all()):
        raise TaskError(
            f"{read.name}: {read.matrix_name} holds values that are no counts; give the raw counts, in X, in "
            "layers or in raw, by --layer where several are there"
        )
    counts_CG.eliminate_zeros()
    empty = int((np.diff(counts_CG.indptr) == 0).sum())
    if empty:
        raise TaskError(f"{read.name}: {empty:,} cells have no counts; remove them first")
    names = read.gene_names or [f"column {column}" for column in range(read.n_columns)]
    others = {f"name_{number}": column for number, column in enumerate(read.alternative_names, start=2)}
    var = pd.DataFrame(others, index=pd.Index(names, dtype=object))
    with quiet(REPEATED_GENES):
        cells = ad.AnnData(counts_CG, obs=read.obs.copy(), var=var, uns={"source": read.name})
    if read.in_vocabulary_columns:
        cells.uns[NAMELESS] = read.name
    return cells


def labels_of(cells: ad.AnnData, column: str, *, unlabelled: Sequence[str] = ()) -> npt.NDArray[np.str_]:
    """Labels of an obs column as text (C,), "" where there is none: missing, or one of ``unlabelled``.

    Raises TaskError where the column is missing, naming what is there, is there twice, or holds what is no label.
    """
    name = cells.uns.get("source", "the AnnData")
    if column not in cells.obs:
        there = ", ".join(map(str, cells.obs.columns)) or "none"
        raise TaskError(f"{name}: obs has no column {column!r}; there are: {there}")
    values = cells.obs[column]
    if isinstance(values, pd.DataFrame):
        raise TaskError(f"{name}: obs has {values.shape[1]} columns {column!r}; rename all but one of them")
    try:
        number, distinct = pd.factorize(values)  # -1 where a value is missing
    except TypeError as error:
        raise TaskError(
            f"{name}: obs column {column!r} holds lists or other values that are no labels"
        ) from error
    text = np.array([*map(_text, distinct), ""], dtype=str)[number]
    return np.where(np.isin(text, list(unlabelled)), "", text)


def check_unlabelled(unlabelled: Sequence[str], column: str, *sources: ad.AnnData) -> None:
    """TaskError, with values that there are, where one of ``unlabelled`` is in the obs column of none of the sources;
    each must have the column.
    """
    there = sorted({label for cells in sources for label in labels_of(cells, column).tolist()} - {""})
    for value in unlabelled:
        if value not in there:
            names = " and ".join(str(cells.uns.get("source", "the AnnData")) for cells in sources)
            more = f" and {len(there) - NAMED_VALUES:,} more" if len(there) > NAMED_VALUES else ""
            raise TaskError(
                f"{names}: no cell has {value!r} in obs column {column!r}, so --unlabelled {value!r} leaves none out; "
                f"there are: {', '.join(there[:NAMED_VALUES]) or 'none'}{more}"
            )


def _text(value: object) -> str:
    """A value of obs as a label; a column of integers is one of floats as soon as one cell has none."""
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value)  # type: ignore[call-overload]


def chosen_rows(cells: ad.AnnData, column: str) -> npt.NDArray[np.bool_]:
    """A boolean obs column (C,), for instance which cells were held out of a pretraining.

    Raises TaskError where it is missing or holds anything but true and false.
    """
    text = np.char.lower(labels_of(cells, column))
    if not np.isin(text, ["true", "false", "1", "0"]).all():
        raise TaskError(
            f"{cells.uns.get('source', 'the AnnData')}: obs column {column!r} holds other values than true and "
            "false; it must say of each cell whether it is meant"
        )
    return np.isin(text, ["true", "1"])


def aligned(source: Source, genes: Sequence[str], *, layer: str | None = None) -> ad.AnnData:
    """Raw counts over those of ``genes``, a model's vocabulary, that the source measured: float32 CSR (C, G) with a
    copy of its obs; ``var`` holds each gene's ``position`` in the vocabulary, ``uns["source"]`` the source's name.

    Raises DataError where it cannot be read, a value is no count, or they share no gene.
    """
    read = SourceCells(source, Vocabulary(tuple(genes)), layer=layer)
    parts = [
        sp.csr_matrix((batch.counts, batch.gene_ids, batch.indptr), (len(batch), len(genes)))
        for batch, _ in read.blocks()
    ]
    columns = read.alignment.column_to_gene
    positions = np.unique(columns[columns >= 0])
    var = pd.DataFrame({"position": positions}, index=pd.Index(np.asarray(genes)[positions], dtype=object))
    name = source.uns.get("source", "the AnnData") if isinstance(source, ad.AnnData) else Path(source).name
    return ad.AnnData(
        sp.vstack(parts, format="csr")[:, positions], obs=read.obs.copy(), var=var, uns={"source": str(name)}
    )
