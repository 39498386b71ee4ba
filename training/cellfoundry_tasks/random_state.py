"""Random numbers of libraries that draw from the process's own states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """While it lasts torch, numpy and Python draw from this seed; then they go on as if nothing had been drawn."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - it is what the libraries draw from
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
