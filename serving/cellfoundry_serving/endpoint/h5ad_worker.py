"""Reads one uploaded h5ad in a process of its own: ``python -m cellfoundry_serving.endpoint.h5ad_worker FOLDER``.

HDF5 was not made for files from strangers. A file that crashes the library, unpacks to more memory than there is, or
takes for ever ends this process alone; one that points at other files of the machine is refused.

The folder holds ``cells.h5ad`` and ``task.json``; the worker leaves ``cells.npz``, or ``refused.txt`` with a sentence.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.vocabulary import Vocabulary

MEMORY_BYTES = 4 * 2**30  # of address space, of which imports take 0.6 GiB
BLOCK_CELLS = 256
SOURCE, TASK, CELLS, REFUSED = "cells.h5ad", "task.json", "cells.npz", "refused.txt"


def main(folder: Path) -> None:
    """Does the task of ``folder``."""
    import resource  # of POSIX systems; the endpoint, which imports this module, starts elsewhere too

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    task = json.loads((folder / TASK).read_text())
    source = folder / SOURCE
    try:
        check_stays_inside(source)
        cells = read_cells(source, Vocabulary(tuple(task["genes"])), task["max_cells"], task["max_tokens"])
    except DataError as error:
        (folder / REFUSED).write_text(str(error).replace(str(source), "The file"))
        return
    np.savez(folder / CELLS, indptr=cells.indptr, gene_ids=cells.gene_ids, counts=cells.counts)


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
        raise DataError("The file is not an h5ad that can be read.") from error


def read_cells(source: Path, vocab: Vocabulary, max_cells: int, max_tokens: int) -> CellBatch:
    """All cells, of a file that keeps within the limits."""
    cells = SourceCells(source, vocab)
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
    main(Path(sys.argv[1]))
