"""First pass: a source's cells, aligned, filtered and keyed, into files that are sorted by shuffle key.

Sorted files make the second pass a merge: a bucket is one contiguous slice of each of them, read through a
memory map.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest.obs_columns import conform, source_obs
from cellfoundry_data.source_cells import SourceCells
from cellfoundry_data.store.cell_keys import MAX_SOURCE_ROWS, buckets, cell_keys, shuffle_keys
from cellfoundry_data.vocabulary import Vocabulary

BLOCK_CELLS = 1024
"""Cells read at a time: even 18,000 genes each make no more than a spilled file."""

SPILL_ENTRIES = 2**24
"""Entries after which a file is written: 134 MB, three times that while its cells are sorted."""


@dataclass(frozen=True)
class SourceReport:
    """What became of one source.

    Attributes:
        name: as the obs column ``source`` says it.
        path: absolute.
        cells_read: cells of the source.
        removed_without_counts: cells without a count in the vocabulary's genes.
        removed_min_genes: other cells with too few genes.
        cells: cells kept.
        nnz: entries (genes with counts) of the cells kept.
        genes: vocabulary genes that the source measures.
        dropped_columns: gene columns outside the vocabulary.
        duplicate_columns: gene columns that were added to another column of the same gene.
        share_of_counts_kept: counts in the vocabulary's genes over all counts, before cells were removed.
    """

    name: str
    path: str
    cells_read: int
    removed_without_counts: int
    removed_min_genes: int
    cells: int
    nnz: int
    genes: int
    dropped_columns: int
    duplicate_columns: int
    share_of_counts_kept: float


@dataclass(frozen=True)
class SourceTask:
    """One source to read, with all that its task needs.

    Attributes:
        index: number of the source, half of a cell's identity.
        name: what the obs column ``source`` says.
        path: where it is.
        layer: which of its matrices.
        schema: obs columns of the store.
        folder: where spilled files go.
        vocabulary: the gene axis.
        min_genes: cells with fewer are removed.
        seed: of the shuffle.
    """

    index: int
    name: str
    path: str
    layer: str | None
    schema: pa.Schema
    folder: Path
    vocabulary: Vocabulary
    min_genes: int
    seed: int


def spill_source(task: SourceTask) -> dict[str, Any]:
    """Read, check, align and filter one source into sorted files; the fields of its SourceReport."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the driver opened the source before and gave its warnings
        source = SourceCells(task.path, task.vocabulary, layer=task.layer)
    if source.n_cells > MAX_SOURCE_ROWS:
        raise DataError(f"{task.path}: has more than {MAX_SOURCE_ROWS:,} cells; split it.")
    obs = conform(source_obs(task.name, source.obs), task.schema)

    read = empty = few = nnz = held_nnz = 0
    counts_kept = 0.0
    held: list[pa.Table] = []
    number = 0
    for cells, _ in source.blocks(BLOCK_CELLS):
        genes_per_cell = np.diff(cells.indptr)
        keep, without_counts = genes_per_cell >= max(1, task.min_genes), genes_per_cell == 0
        read += len(cells)
        empty += int(without_counts.sum())
        few += int((~keep & ~without_counts).sum())
        counts_kept += float(cells.counts.sum(dtype=np.float64))
        kept = cells.select(np.flatnonzero(keep))
        held.append(_keyed_cells(kept, obs, task))
        nnz, held_nnz = nnz + kept.nnz, held_nnz + kept.nnz
        if held_nnz >= SPILL_ENTRIES:
            _write_sorted(held, task.folder / f"{task.index:06d}-{number:06d}.arrow")
            held, held_nnz, number = [], 0, number + 1
    if held:
        _write_sorted(held, task.folder / f"{task.index:06d}-{number:06d}.arrow")
    return asdict(
        SourceReport(
            name=task.name,
            path=task.path,
            cells_read=read,
            removed_without_counts=empty,
            removed_min_genes=few,
            cells=read - empty - few,
            nnz=nnz,
            genes=source.alignment.genes,
            dropped_columns=source.alignment.dropped,
            duplicate_columns=source.alignment.duplicates,
            share_of_counts_kept=counts_kept / source.counts_read if source.counts_read else 0.0,
        )
    )


def read_bucket(folder: Path, bucket: int, n_buckets: int) -> pa.Table:
    """All spilled cells of a bucket in the order of their shuffle keys."""
    table = pa.concat_tables(_slices(folder, bucket, n_buckets)).combine_chunks()
    return table.take(np.argsort(table["shuffle_key"].to_numpy())).combine_chunks()


def as_batch(table: pa.Table) -> CellBatch:
    """One or more spilled cells as a batch; row ids count from 0."""
    genes, counts = table["gene_ids"].chunk(0), table["counts"].chunk(0)
    offsets = genes.offsets.to_numpy()
    return CellBatch(
        offsets - offsets[0],
        genes.flatten().to_numpy(),
        counts.flatten().to_numpy(),
        np.arange(len(table), dtype=np.int64),
    )


def _slices(folder: Path, bucket: int, n_buckets: int) -> Iterator[pa.Table]:
    for path in sorted(folder.iterdir()):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        of_cell = buckets(table["shuffle_key"].to_numpy(), n_buckets)
        start, stop = np.searchsorted(of_cell, [bucket, bucket + 1])
        yield table.slice(start, stop - start)


def _keyed_cells(cells: CellBatch, obs: pa.Table, task: SourceTask) -> pa.Table:
    """Cells as one row each: keys, ragged genes and counts, obs as a struct."""
    keys = cell_keys(task.index, cells.row_ids)
    offsets = pa.array(cells.indptr)
    return pa.table(
        {
            "shuffle_key": shuffle_keys(keys, task.seed),
            "cell_key": keys,
            "gene_ids": pa.LargeListArray.from_arrays(offsets, pa.array(cells.gene_ids)),
            "counts": pa.LargeListArray.from_arrays(offsets, pa.array(cells.counts)),
            "obs": obs.take(cells.row_ids).to_struct_array(),
        }
    )


def _write_sorted(held: list[pa.Table], path: Path) -> None:
    table = pa.concat_tables(held).combine_chunks()
    table = table.take(np.argsort(table["shuffle_key"].to_numpy()))
    partial = path.parent.parent / f"{path.name}.partial"
    with pa.ipc.new_file(partial, table.schema) as writer:
        writer.write_table(table)
    partial.replace(path)
