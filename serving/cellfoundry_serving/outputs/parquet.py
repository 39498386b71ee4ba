"""``.parquet``: one row a cell: ``cell``, the obs columns, and the vector as one fixed-size list of float32.

Polars and DuckDB read the list as an array column; in pandas ``np.stack(frame["embedding"])`` gives the
matrix.
Expression goes into a list column ``expression`` in the vocabulary's order, whose symbols are in the schema
metadata (``genes``, one a line).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cellfoundry_serving.outputs.base import EmbeddingWriter, OutputSpec


class ParquetWriter(EmbeddingWriter):
    """One row group a block."""

    def __init__(self, path: Path, spec: OutputSpec) -> None:
        super().__init__(path, spec)
        column = "embedding" if spec.output == "cell" else "expression"
        self._cells = obs_table(spec.obs, reserved=column)
        self._list_type = pa.list_(pa.float32(), spec.shape[1])
        metadata = {"cellfoundry": json.dumps(spec.provenance)}
        if spec.output == "expression":
            metadata["genes"] = "\n".join(spec.genes)
        self._schema = self._cells.schema.append(pa.field(column, self._list_type)).with_metadata(metadata)
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, first: int, block: npt.NDArray[np.float32]) -> None:
        """Writes the block as a row group."""
        values = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), type=self._list_type)
        cells = self._cells.slice(first, len(block))
        self._writer.write_table(pa.table([*cells.columns, values], schema=self._schema))

    def close(self) -> None:
        """Writes the footer."""
        self._writer.close()


def obs_table(obs: pd.DataFrame, reserved: str) -> pa.Table:
    """``cell`` and the obs columns; what Arrow cannot type goes in as text, a taken name gets ``obs_``."""
    frame = obs.rename(columns=lambda name: f"obs_{name}" if str(name) in {"cell", reserved} else str(name))
    columns: dict[str, pa.Array] = {"cell": pa.array([str(name) for name in obs.index], pa.string())}
    for name in frame.columns:
        try:
            columns[name] = pa.array(frame[name], from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[name] = pa.array(frame[name].astype(str), pa.string())
    return pa.table(columns)
