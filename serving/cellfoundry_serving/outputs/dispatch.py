"""What a file name asks for, and how its rows get there.

``.npy`` and ``.zarr`` take rows at any place, so parts are written straight into the output. The others are written
in order: their rows wait in an ``.npy`` file until all are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cellfoundry_data.store.replace import sync, sync_tree
from cellfoundry_serving.atomic import check_parent
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.outputs.base import Blocks, OutputSpec, RowsOnDisk
from cellfoundry_serving.outputs.earlier import is_earlier_output
from cellfoundry_serving.outputs.npy import NpyRows, create_npy, npy_blocks

SUFFIXES = (".h5ad", ".npy", ".parquet", ".arrow", ".zarr")
GENE_SUFFIXES = (".npy", ".zarr")
SHARD_SUFFIXES = (".parquet", ".arrow")
ANY_ORDER = (".npy", ".zarr")
FOLDER_SUFFIXES = (".zarr", *SHARD_SUFFIXES)


def check_output(out: Path, output: str, *, shards: bool = False) -> None:
    """Raises ServingError before any work where ``out`` cannot take this ``output`` or has no folder."""
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise ServingError(f"{out}: unknown output format; use one of {', '.join(SUFFIXES)}.")
    if output == "gene" and suffix not in GENE_SUFFIXES:
        raise ServingError(f"{out}: gene embeddings have three axes; use one of {', '.join(GENE_SUFFIXES)}.")
    if shards and suffix not in SHARD_SUFFIXES:
        raise ServingError(f"{out}: only {' and '.join(SHARD_SUFFIXES)} can be a folder of shards.")
    if out.is_dir() and not (suffix in FOLDER_SUFFIXES and is_earlier_output(out)):
        raise ServingError(
            f"{out} is a folder and no earlier embedding alone, so it is not replaced; give another name."
        )
    check_parent(out)


def create_rows(path: Path, suffix: str, shape: tuple[int, ...], rows_of_chunk: int) -> None:
    """The array at ``path`` that parts write their rows to: the output of ``suffix`` itself where it can be."""
    if suffix == ".zarr":
        from cellfoundry_serving.outputs.zarr_group import create_zarr

        create_zarr(path, shape, rows_of_chunk)
    else:
        create_npy(path, shape)


def open_rows(path: Path, suffix: str) -> RowsOnDisk:
    """What ``create_rows`` made, to write rows to it."""
    if suffix == ".zarr":
        from cellfoundry_serving.outputs.zarr_group import ZarrRows

        return ZarrRows(path)
    return NpyRows(path)


def finish_in_place(path: Path, suffix: str, spec: OutputSpec) -> None:
    """Add to an array that is the output what belongs beside the numbers."""
    if suffix == ".zarr":
        from cellfoundry_serving.outputs.zarr_group import finish_zarr

        finish_zarr(path, spec)


def write_in_order(
    path: Path, suffix: str, spec: OutputSpec, blocks: Callable[[int, int], Blocks], *, shards: bool
) -> None:
    """Write a format that is written in order, or a folder of shards of it, and have it on the disk.

    ``blocks(start, stop)`` gives rows [start, stop).
    """
    n_rows = spec.shape[0]
    if suffix == ".h5ad":
        from cellfoundry_serving.outputs.h5ad import write_h5ad

        write_h5ad(path, spec, blocks(0, n_rows))
        sync(path)
        return
    from cellfoundry_serving.outputs.tables import WRITERS, Table, shard_name, shard_rows

    table = Table(spec)
    if not shards:
        WRITERS[suffix](path, table, blocks(0, n_rows))
        sync(path)
        return
    path.mkdir()
    step = shard_rows(spec.shape)
    for number, start in enumerate(range(0, n_rows, step)):
        stop = min(start + step, n_rows)
        WRITERS[suffix](path / shard_name(number, suffix), table, blocks(start, stop))
    sync_tree(path)


def write_array(path: Path, suffix: str, spec: OutputSpec, array: npt.NDArray[np.float32]) -> None:
    """Write rows that fit into memory."""
    if suffix not in ANY_ORDER:
        write_in_order(path, suffix, spec, lambda start, stop: [(start, array[start:stop])], shards=False)
        return
    create_rows(path, suffix, spec.shape, 1)
    rows = open_rows(path, suffix)
    rows.write(0, array)
    rows.commit(0, len(array))
    finish_in_place(path, suffix, spec)


def waiting_blocks(path: Path) -> Callable[[int, int], Iterator[tuple[int, npt.NDArray[np.float32]]]]:
    """Rows that wait in an .npy file, for ``write_in_order``."""
    return lambda start, stop: npy_blocks(path, start, stop)
