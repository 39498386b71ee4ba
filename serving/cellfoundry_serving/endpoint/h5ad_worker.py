"""Reads one uploaded h5ad in a process of its own: ``python -m cellfoundry_serving.endpoint.h5ad_worker FOLDER``.

HDF5 was not made for files from strangers. A file that crashes the library, unpacks to more memory than there is, or
takes for ever ends this process alone; one that points at other files of the machine is refused.

The folder holds ``cells.h5ad`` and ``task.json``; the worker leaves ``cells.npz`` and ``columns.json``, of obs and
empty unless it is asked for, or ``refused.txt`` with a sentence. Where that cannot say what is wrong with the file,
standard error does, for the server's log.
"""

from __future__ import annotations

import json
import traceback
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError, FractionError
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.endpoint.label_columns import LabelColumn, label_columns
from cellfoundry_serving.endpoint.worker_process import run_task

BLOCK_CELLS = 256
SOURCE, TASK, REFUSED = "cells.h5ad", "task.json", "refused.txt"
CELLS, COLUMNS = "cells.npz", "columns.json"
UNREADABLE = "The file is not an h5ad that can be read."
MAX_SENTENCE = 500  # characters; names of the file's own may stand in it


def main(folder: Path) -> None:
    """Does the task of ``folder``."""
    warnings.simplefilter("ignore")
    task = json.loads((folder / TASK).read_text())
    try:
        cells, columns = read_file(folder / SOURCE, task)
    except MemoryError:
        raise
    except Exception as error:
        sentence = " ".join(refusal(error, folder / SOURCE).split())[:MAX_SENTENCE]
        (folder / REFUSED).write_text(sentence, errors="backslashreplace")
        return
    np.savez(folder / CELLS, indptr=cells.indptr, gene_ids=cells.gene_ids, counts=cells.counts)
    (folder / COLUMNS).write_text(json.dumps(columns))


def read_file(source: Path, task: dict[str, Any]) -> tuple[CellBatch, dict[str, LabelColumn]]:
    """Cells and, where they are asked for, columns of obs; a file from a stranger may raise anything."""
    check_stays_inside(source)
    opened = SourceCells(source, Vocabulary(tuple(task["genes"])))
    cells = read_cells(opened, task["max_cells"], task["max_tokens"])
    return cells, label_columns(opened.obs) if task["labelled"] else {}


def refusal(error: Exception, source: Path) -> str:
    """The sentence for the client; what no layer of ours has put into words goes to standard error whole."""
    if isinstance(error, FractionError):
        return f"The file's values look already normalised ({error.where}); send raw counts, in X, raw or a layer."
    if isinstance(error, DataError):
        sentence = str(error).replace(str(source), SOURCE).replace(f"{SOURCE}: ", "The file: ")
        return sentence.replace(SOURCE, "the file")
    traceback.print_exception(error)
    return UNREADABLE


def check_stays_inside(source: Path) -> None:
    """DataError where the file refers to others: external links, external storage, virtual datasets."""
    try:
        with h5py.File(source, "r") as file:
            groups: list[h5py.Group] = [file]
            seen = set()
            while groups:
                group = groups.pop()
                for name in group:
                    link = group.get(name, getlink=True)
                    if isinstance(link, h5py.ExternalLink):
                        raise DataError("The file has a link to another file; send one that stands alone.")
                    if isinstance(link, h5py.SoftLink):
                        continue  # stays inside; what it points at is visited by its own name
                    node = group[name]
                    if isinstance(node, h5py.Dataset) and (node.is_virtual or node.external):
                        raise DataError("The file keeps data in other files; send one that stands alone.")
                    address = h5py.h5o.get_info(node.id).addr
                    if isinstance(node, h5py.Group) and address not in seen:
                        seen.add(address)
                        groups.append(node)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(UNREADABLE) from error


def read_cells(cells: SourceCells, max_cells: int, max_tokens: int) -> CellBatch:
    """All cells, of a file that keeps within the limits."""
    if not 0 < cells.n_cells <= max_cells:
        raise DataError(
            f"The file has {cells.n_cells} cells, a request may have 1 to {max_cells}; send fewer at once."
        )
    batches: list[CellBatch] = []
    for batch, _ in cells.blocks(BLOCK_CELLS):
        batches.append(batch)
        if sum(batch.nnz for batch in batches) > max_tokens:
            raise DataError(f"The file has more than {max_tokens} counts; send fewer cells at once.")
    lengths = np.concatenate([np.diff(batch.indptr) for batch in batches])
    return CellBatch(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([batch.gene_ids for batch in batches]),
        np.concatenate([batch.counts for batch in batches]),
        np.arange(len(lengths)),
    )


if __name__ == "__main__":
    run_task(main)
