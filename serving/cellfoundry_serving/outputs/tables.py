"""``.parquet`` and ``.arrow``: one row a cell: ``cell``, the obs columns and the vector, a fixed-size list of float32.

Polars and DuckDB read the list as an array column; in pandas ``np.stack(frame["embedding"])`` gives the
matrix.
Expression goes into a list column ``expression`` in the order of the genes, whose symbols are in the schema
metadata (``genes``, one a line). A large output may be a folder of such files, ``part-00000.parquet`` and so on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cellfoundry_serving.outputs.base import PROVENANCE_KEY, Blocks, OutputSpec

SHARD_BYTES = 256 * 2**20
"""Of vectors in a file of a folder."""


class Table:
    """Rows of one output as Arrow tables."""

    def __init__(self, spec: OutputSpec) -> None:
        column = "embedding" if spec.output == "cell" else "expression"
        self._cells = obs_table(spec.obs, reserved=column, name=spec.rows.removesuffix("s"))
        self._list_type = pa.list_(pa.float32(), spec.shape[1])
        metadata = {PROVENANCE_KEY: json.dumps(spec.provenance)}
        if spec.output == "expression":
            metadata["genes"] = "\n".join(spec.genes)
        self.schema = self._cells.schema.append(pa.field(column, self._list_type)).with_metadata(metadata)

    def rows(self, first: int, block: Any) -> pa.Table:
        """The table's rows from ``first`` on, with the vectors of ``block``."""
        values = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), type=self._list_type)
        cells = self._cells.slice(first, len(block))
        return pa.table([*cells.columns, values], schema=self.schema)


def write_parquet(path: Path, table: Table, blocks: Blocks) -> None:
    """One row group a block."""
    with pq.ParquetWriter(path, table.schema) as writer:
        for first, block in blocks:
            writer.write_table(table.rows(first, block))


def write_arrow(path: Path, table: Table, blocks: Blocks) -> None:
    """The Arrow IPC file format, a record batch a block; it can be memory-mapped."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        for first, block in blocks:
            writer.write_table(table.rows(first, block).combine_chunks())


WRITERS: dict[str, Callable[[Path, Table, Blocks], None]] = {
    ".parquet": write_parquet,
    ".arrow": write_arrow,
}


def shard_rows(shape: tuple[int, ...]) -> int:
    """Rows of each file but the last."""
    return max(1, SHARD_BYTES // (4 * shape[1]))


def shard_name(number: int, suffix: str) -> str:
    """``part-00000.parquet``; sorted by name they are in order."""
    return f"part-{number:05d}{suffix}"


def obs_table(obs: pd.DataFrame, reserved: str, name: str = "cell") -> pa.Table:
    """``name`` and the obs columns; what Arrow cannot type goes in as text, a taken name gets ``obs_``."""
    columns: dict[str, pa.Array] = {name: pa.array([str(each) for each in obs.index], pa.string())}
    for position, each in enumerate(_free_names([str(each) for each in obs.columns], {name, reserved})):
        values = obs.iloc[:, position]
        if isinstance(
            getattr(values.dtype, "categories", values.array), pd.arrays.IntervalArray | pd.IntervalIndex
        ):
            values = values.map(
                str, na_action="ignore"
            )  # pd.cut's, which Arrow writes and pandas does not read
        try:
            columns[each] = pa.array(values, from_pandas=True)
        except pa.ArrowException:
            columns[each] = pa.array(values.astype(str), pa.string())
    return pa.table(columns)


def _free_names(names: list[str], reserved: set[str]) -> list[str]:
    """Each name once: those that are reserved, or were there before, get ``obs_`` until they are like no other."""
    given, found = set(names), []
    for each in names:
        free = each
        while free in reserved or free in found or (free != each and free in given):
            free = f"obs_{free}"
        found.append(free)
    return found
