"""Names as files store them."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_texts(values: Any) -> list[str]:
    """Names of an array as str; bytes must be UTF-8."""
    return [
        value.decode() if isinstance(value, bytes) else str(value) for value in np.asarray(values).tolist()
    ]
