"""Readers of count matrices, one file a format; ``open_source`` picks by suffix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from .arrays import NpySource, NpzSource
from .base import CountsSource
from .h5ad import H5adSource
from .table import TableSource
from .tenx import TenxFolderSource, TenxH5Source, is_tenx_folder
from .zarr import ZarrSource

ACCEPTED = ".h5ad, .zarr, 10x .h5, a 10x matrix folder, .csv, .tsv (both also .gz), .npy, .npz"

_WITH_LAYERS: dict[str, Callable[[str, str | None], CountsSource]] = {
    ".h5ad": H5adSource,
    ".zarr": ZarrSource,
}
_PLAIN: dict[str, Callable[[str], CountsSource]] = {
    ".h5": TenxH5Source,
    ".csv": TableSource,
    ".tsv": TableSource,
    ".csv.gz": TableSource,
    ".tsv.gz": TableSource,
    ".npy": NpySource,
    ".npz": NpzSource,
}


def open_source(path: str | Path, *, layer: str | None = None) -> CountsSource:
    """Open a count matrix; the suffix tells the format.

    ``layer``: None reads ``X``; "raw" or a layer's name reads that one (.h5ad and .zarr only).

    Raises:
        DataError: missing, unreadable or empty source, unknown suffix, no such layer.
    """
    location = Path(path)
    if not location.exists():
        raise DataError(f"{path}: no such file or folder.")
    suffix = _suffix(location)
    if suffix in _WITH_LAYERS:
        return _WITH_LAYERS[suffix](str(path), layer)
    if layer is not None:
        raise DataError(f"{path}: layer {layer!r} was asked for, but only .h5ad and .zarr files have layers.")
    if suffix in _PLAIN:
        return _PLAIN[suffix](str(path))
    if location.is_dir() and is_tenx_folder(location):
        return TenxFolderSource(str(path))
    raise DataError(f"{path}: unknown kind of source; accepted are {ACCEPTED}.")


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])
