"""Predictions beside the source's obs: a table (.csv, .parquet), or obs of a copy of the source (.h5ad)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from anndata.io import read_elem, write_elem

from cellfoundry_serving.atomic import atomic_path, check_parent
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.outputs.base import OutputSpec
from cellfoundry_serving.outputs.h5ad import nullable_text, write_base
from cellfoundry_serving.outputs.tables import obs_table

SUFFIXES = (".csv", ".parquet", ".h5ad")
UNS_KEY, COLUMNS = "cellfoundry_prediction", "columns"


def check_predictions_output(out: Path) -> None:
    """Raises ServingError before any work where ``out`` cannot take predictions or has no folder."""
    if out.suffix.lower() not in SUFFIXES:
        raise ServingError(f"{out}: unknown output format; use one of {', '.join(SUFFIXES)}.")
    if out.is_dir():
        raise ServingError(f"{out} is a folder, so it is not replaced; give another name.")
    check_parent(out)


def write_predictions(
    out: Path, source: Any, obs: pd.DataFrame, predicted: pd.DataFrame, provenance: dict[str, str]
) -> None:
    """Write ``predicted`` beside ``obs``, both (cells,) rows in one order; ``out`` appears whole or not at all.

    A column of ``obs`` with a prediction's name is replaced, and in an .h5ad all that an earlier prediction left.
    """
    suffix = out.suffix.lower()
    with atomic_path(out) as partial:
        if suffix == ".h5ad":
            _write_h5ad(partial, source, obs, predicted, provenance)
            return
        table = obs_table(_beside(obs, predicted), reserved="cell")
        if suffix == ".parquet":
            metadata = {"cellfoundry": json.dumps(provenance)} | (table.schema.metadata or {})
            pq.write_table(table.replace_schema_metadata(metadata), partial)
        else:
            table.to_pandas().to_csv(partial, index=False)


def _beside(obs: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    kept = obs.drop(columns=[name for name in obs.columns if name in predicted.columns])
    together = pd.concat([kept, predicted.set_axis(kept.index, axis=0)], axis=1)
    if together.index.name in predicted.columns:
        together.index.name = None  # anndata writes no index that is called like a column
    return together


def _write_h5ad(
    path: Path, source: Any, obs: pd.DataFrame, predicted: pd.DataFrame, provenance: dict[str, str]
) -> None:
    write_base(path, OutputSpec("cell", predicted.shape, obs, (), provenance, source))
    with h5py.File(path, "r+") as file:
        if "uns" not in file:
            write_elem(file, "uns", {})
        before = _earlier_columns(file)
        write_elem(file, f"uns/{UNS_KEY}", provenance | {COLUMNS: np.array(predicted.columns, dtype=object)})
        kept = read_elem(file["obs"]).drop(columns=before, errors="ignore")
        with nullable_text():
            write_elem(file, "obs", _beside(kept, predicted))


def _earlier_columns(file: h5py.File) -> list[str]:
    """Obs columns that a prediction before this one has added."""
    names = file.get(f"uns/{UNS_KEY}/{COLUMNS}")
    return [] if names is None else [str(name) for name in np.atleast_1d(read_elem(names))]
