"""Whether a folder is an embedding of ours with nothing beside it: only such a folder may be replaced."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cellfoundry_serving.outputs.base import PROVENANCE_KEY

ZARR_ARRAYS = {"embedding", "cells", "groups", "genes", "n_cells"}


def is_earlier_output(folder: Path) -> bool:
    """Whether all that lies in ``folder`` is what ``embed`` writes to such a name, by its mark and the names."""
    suffix = folder.suffix.lower()
    inside = list(folder.iterdir())
    if suffix == ".zarr":
        return _is_ours(_zarr_attributes(folder)) and all(map(_is_part_of_zarr, inside))
    shard = re.compile(rf"part-\d{{5}}{re.escape(suffix)}")
    return bool(inside) and all(
        shard.fullmatch(path.name) and _is_ours(_schema_metadata(path, suffix)) for path in inside
    )


def _is_ours(metadata: Any) -> bool:
    return isinstance(metadata, dict) and (PROVENANCE_KEY in metadata or PROVENANCE_KEY.encode() in metadata)


def _is_part_of_zarr(path: Path) -> bool:
    if path.name == "zarr.json":
        return path.is_file()
    return (
        path.name in ZARR_ARRAYS
        and path.is_dir()
        and {each.name for each in path.iterdir()} <= {"zarr.json", "c"}
    )


def _zarr_attributes(folder: Path) -> Any:
    try:
        return json.loads((folder / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _schema_metadata(path: Path, suffix: str) -> Any:
    try:
        if suffix == ".parquet":
            schema = pq.read_schema(path)
        else:
            with pa.memory_map(str(path)) as file:
                schema = pa.ipc.open_file(file).schema
    except (OSError, pa.ArrowException):
        return None
    return schema.metadata
