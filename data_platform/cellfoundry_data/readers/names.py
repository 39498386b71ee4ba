"""Names as files store them."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_texts(values: Any) -> list[str]:
    """Names of an array as str; bytes must be UTF-8."""
    texts = np.asarray(values).tolist()
    if set(map(type, texts)) == {bytes}:  # HDF5 gives all of them so
        return list(map(bytes.decode, texts))
    return [value.decode() if isinstance(value, bytes) else str(value) for value in texts]
