"""A store as files that other tools read: AnnData .h5ad and .zarr, and long-form .parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.store.format import OBS_CELL_NAME
from cellfoundry_data.store.reader import Store, open_store
from cellfoundry_data.store.replace import remove

BLOCK_NNZ = 2**22
"""Entries in memory at a time, or one chunk where that has more."""

Progress = Callable[[str, int, int], None]


def export(store: str | Path, out: str | Path, progress: Progress | None = None) -> None:
    """Write the store's cells, in its order, to ``out``; one block of cells and the whole obs are in memory.

    ``.h5ad`` and ``.zarr`` are AnnData (CSR float32, obs, gene names; a column ``_index``, which is AnnData's own,
    gets trailing underscores). ``.parquet`` is one line an entry (cell,
    gene, and count, uint32, or value, float32) with the obs beside it in ``<name>.obs.parquet`` (its ``cell`` is
    that of the entries; a column of that name gets trailing underscores). Cells are called by their names in the
    sources; where those repeat, every name gets ``-`` and the cell's row in the store.

    Raises:
        DataError: another suffix, a folder that is missing, a folder in the way that is no AnnData .zarr, or
            a damaged store.
    """
    out = Path(out)
    writers = {".h5ad": _write_h5ad, ".zarr": _write_zarr, ".parquet": _write_parquet}
    if out.suffix not in writers:
        raise DataError(f"cannot export to {out}: its suffix must be one of {', '.join(writers)}.")
    if not out.parent.is_dir():
        raise DataError(f"cannot export to {out}: the folder {out.parent} does not exist.")
    if out.is_dir() and not (out.suffix == ".zarr" and _is_anndata_zarr(out)):
        raise DataError(
            f"{out} is a folder and no AnnData .zarr, so it is not replaced: choose another name."
        )
    opened = open_store(store)
    temporary = out.with_name(f".{out.stem}.partial{out.suffix}")
    remove(temporary)
    try:
        writers[out.suffix](opened, temporary, progress)
        if out.suffix == ".parquet":
            _obs_file(temporary).replace(_obs_file(out))
        elif out.is_dir():
            remove(out)
        temporary.replace(out)
    finally:
        remove(temporary)
        remove(_obs_file(temporary))


def _write_h5ad(store: Store, out: Path, progress: Progress | None) -> None:
    import h5py

    with h5py.File(out, "w") as file:
        try:
            _write_anndata(store, file, lambda group, **array: group.create_dataset(**array), progress)
        except ValueError as error:
            if "embedded NULL" not in str(error):
                raise
            raise DataError(
                f"{store.path}: a name in its obs holds a NUL character, which .h5ad cannot take; export to .zarr or "
                ".parquet."
            ) from error


def _write_zarr(store: Store, out: Path, progress: Progress | None) -> None:
    import zarr

    _write_anndata(
        store,
        zarr.open_group(out, mode="w", zarr_format=2),
        lambda group, **array: group.create_array(**array),
        progress,
    )


def _write_anndata(
    store: Store, root: Any, create_array: Callable[..., Any], progress: Progress | None
) -> None:
    """Write AnnData's on-disk format (encoding version 0.1.0) into an HDF5 or Zarr group, X by blocks."""
    from anndata.io import write_elem

    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    group = root.create_group("X")
    group.attrs.update(
        {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [store.n_cells, store.n_genes]}
    )
    nnz = store.manifest["nnz"]
    chunks = (max(1, min(nnz, 1 << 20)),)
    data = create_array(group, name="data", shape=(nnz,), dtype="float32", chunks=chunks)
    indices = create_array(group, name="indices", shape=(nnz,), dtype="int32", chunks=chunks)
    lengths = [np.empty(0, np.int64)]
    first = 0
    for cells in _blocks(store, progress):
        data[first : first + cells.nnz] = cells.counts
        indices[first : first + cells.nnz] = cells.gene_ids
        lengths.append(np.diff(cells.indptr))
        first += cells.nnz
    indptr = create_array(group, name="indptr", shape=(store.n_cells + 1,), dtype="int64")
    indptr[:] = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])

    obs = store.obs_frame().set_index(pd.Index(_cell_names(store), dtype=object))
    obs.columns = pd.Index(_without("_index", list(obs.columns)))
    write_elem(root, "obs", obs)
    write_elem(root, "var", pd.DataFrame(index=pd.Index(store.vocabulary.genes, dtype=object)))
    for empty in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
        write_elem(root, empty, {})


def _write_parquet(store: Store, out: Path, progress: Progress | None) -> None:
    names = pa.array(_cell_names(store))
    genes = pa.array(store.vocabulary.genes)
    text = pa.dictionary(pa.int32(), pa.string())
    measured = ("count", pa.uint32()) if store.values == "counts" else ("value", pa.float32())
    schema = pa.schema([("cell", text), ("gene", text), measured])
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for cells in _blocks(store, progress):
            first = int(cells.row_ids[0])
            entries_cell = np.repeat(np.arange(len(cells), dtype=np.int32), np.diff(cells.indptr))
            columns = [
                pa.DictionaryArray.from_arrays(entries_cell, names.slice(first, len(cells))),
                pa.DictionaryArray.from_arrays(cells.gene_ids, genes),
                pa.array(cells.counts.astype(measured[1].to_pandas_dtype(), copy=False)),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    obs = store.obs
    obs = obs.rename_columns(_without("cell", obs.column_names))
    pq.write_table(obs.add_column(0, "cell", names), _obs_file(out), compression="zstd")


def _blocks(store: Store, progress: Progress | None) -> Iterator[CellBatch]:
    """Runs of whole chunks, so that no chunk is decoded twice."""
    entries = np.cumsum(store.chunk_nnz, dtype=np.int64)
    chunk, before = 0, 0
    while chunk < len(entries):
        last = max(chunk + 1, int(np.searchsorted(entries, before + BLOCK_NNZ, side="right")))
        yield store.read_cells(np.arange(store.chunk_first_row[chunk], store.chunk_first_row[last]))
        chunk, before = last, int(entries[last - 1])
        if progress:
            progress("export", int(store.chunk_first_row[chunk]), store.n_cells)


def _without(reserved: str, columns: list[str]) -> list[str]:
    """Column names where the one that the file format has for itself got trailing underscores."""
    free = reserved
    while free in columns:
        free += "_"
    return [free if name == reserved else name for name in columns]


def _cell_names(store: Store) -> list[str]:
    """One distinct name a cell."""
    names = store.obs[OBS_CELL_NAME].to_pylist()
    if len(set(names)) == len(names):
        return names
    return [f"{name}-{row}" for row, name in enumerate(names)]


def _is_anndata_zarr(folder: Path) -> bool:
    """Whether a folder is an AnnData .zarr of either Zarr format; a CellFoundry store is not."""
    return any((folder / "obs" / name).is_file() for name in (".zgroup", "zarr.json"))


def _obs_file(out: Path) -> Path:
    return out.with_name(f"{out.stem}.obs.parquet")
