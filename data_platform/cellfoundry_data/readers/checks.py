"""Checks of what a file says before anything relies on it. Faults raise ValueError; ``base.reading`` names the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def as_float32(values: Any) -> npt.NDArray[np.float32]:
    """Numbers as float32 (too large ones become inf, which the checks of values report)."""
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"the values are of type {values.dtype}, not numbers")
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def as_integers(values: Any, what: str) -> npt.NDArray[np.signedinteger]:
    """Indices or offsets as signed integers, of at least 32 bits, in this machine's byte order."""
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise ValueError(f"the {what} are of type {values.dtype}, not integers")
    small = (values.dtype.kind == "i" and values.dtype.itemsize <= 4) or values.dtype.itemsize <= 2
    return values.astype(np.int32 if small else np.int64, copy=False)


def check_range(indices: npt.NDArray[np.integer], size: int, axis: str) -> None:
    """ValueError where an index is outside 0..size - 1."""
    if len(indices) and not (indices.min() >= 0 and indices.max() < size):
        bad = int(indices.min() if indices.min() < 0 else indices.max())
        raise ValueError(f"a {axis} index is {bad}, outside 0..{size - 1}")


def check_offsets(offsets: npt.NDArray[np.integer], n_entries: int) -> None:
    """ValueError unless offsets start at 0, never fall and end within the entries."""
    valid = (
        len(offsets) > 0 and offsets[0] == 0 and (np.diff(offsets) >= 0).all() and offsets[-1] <= n_entries
    )
    if not valid:
        raise ValueError("the row offsets do not fit the stored entries")
