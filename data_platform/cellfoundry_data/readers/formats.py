"""The formats: which reader opens what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from .base import CountsSource, reading
from .h5ad import H5adSource
from .location import as_location, children, exists, is_folder, suffix_of
from .loom import LoomSource
from .npy import NpySource
from .npz import NpzSource
from .parquet import ParquetSource, parquet_parts
from .table import TableSource
from .tenx import TenxH5Source
from .tenx_folder import TenxFolderSource, is_tenx_folder
from .zarr import ZarrSource

ACCEPTED = (
    ".h5ad, .zarr, .loom, 10x .h5, a 10x matrix folder, .parquet, .csv, .tsv (both also .gz), .npy, .npz"
)

_WITH_LAYERS: dict[str, Callable[[str, str | None], CountsSource]] = {
    ".h5ad": H5adSource,
    ".zarr": ZarrSource,
    ".loom": LoomSource,
}
_PLAIN: dict[str, Callable[[str], CountsSource]] = {
    ".h5": TenxH5Source,
    ".parquet": ParquetSource,
    ".csv": TableSource,
    ".tsv": TableSource,
    ".csv.gz": TableSource,
    ".tsv.gz": TableSource,
    ".npy": NpySource,
    ".npz": NpzSource,
}


def open_source(path: str | Path, *, layer: str | None = None) -> CountsSource:
    """Open a count matrix: a path, or a URL that fsspec knows; the suffix tells the format.

    ``layer``: "X", "raw" or a layer's name (.h5ad, .zarr and .loom). None reads the first of X, layers["counts"],
    raw and the other layers that holds whole numbers, and X where none does.

    Raises:
        DataError: missing, unreadable or empty source, unknown suffix, no such layer.
    """
    where = as_location(path)
    with reading(where, "a source"):
        if not exists(where):
            raise DataError(f"{path}: no such file or folder.")
    if suffix_of(where) in _WITH_LAYERS:
        return _WITH_LAYERS[suffix_of(where)](where, layer)
    opener = _opener(where)
    if opener is None:
        raise DataError(f"{path}: unknown kind of source; accepted are {ACCEPTED}.")
    if layer not in (None, "X"):
        raise DataError(
            f"{path}: layer {layer!r} was asked for, but only .h5ad, .zarr and .loom have layers."
        )
    return opener(where)


def is_source(path: str) -> bool:
    """Whether a file or folder is one that ``open_source`` takes, by its name and, for a folder, what lies in it."""
    return suffix_of(path) in _WITH_LAYERS or _opener(path) is not None


def _opener(path: str) -> Callable[[str], CountsSource] | None:
    if suffix_of(path) in _PLAIN:
        return _PLAIN[suffix_of(path)]
    with reading(path, "a folder"):
        if is_folder(path):
            if is_tenx_folder([name for name, is_dir in children(path) if not is_dir]):
                return TenxFolderSource
            if parquet_parts(path):
                return ParquetSource
    return None
