"""Which matrix of a file holds the raw counts: the first of X, layer "counts", raw and the other layers that does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

WINDOWS = 16
"""Places of a matrix that are looked at, evenly from its first to its last entries."""
WINDOW_ENTRIES = 4096


def preferred_order(names: Iterable[str]) -> list[str]:
    """Matrix names ("X", "raw", "layers/<name>") in the order in which counts are looked for."""
    first = ["X", "layers/counts", "raw"]
    return sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name))


def holds_whole_numbers(values: Any) -> bool:
    """Whether an array (the values of a sparse matrix, or a dense matrix) holds only whole numbers >= 0, and not
    only zeros: an X without values stands beside a layer of counts.

    Looks at ``WINDOWS`` places spread over it, so that rows appended in other units are noticed.
    """
    if values.dtype.kind not in "biuf":
        return False
    width = int(np.prod(values.shape[1:]))
    height = max(1, WINDOW_ENTRIES // max(1, width))
    last = max(0, values.shape[0] - height)
    any_count = False
    for start in sorted({round(last * window / (WINDOWS - 1)) for window in range(WINDOWS)}):
        seen = np.asarray(values[start : start + height])
        if not (np.isfinite(seen) & (seen >= 0) & (seen == np.rint(seen))).all():
            return False
        any_count = any_count or bool(seen.any())
    return any_count
