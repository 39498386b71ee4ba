"""Permutations and random numbers as pure functions of a salt: the same on every machine and numpy release."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cellfoundry_data.store.cell_keys import mix

# What a salt is for; the numbers that follow it count epochs, windows, batches, categories and passes.
CHUNKS, CELLS, DRAWS, QUOTAS, BLOCKS, STARTS, STEPS = range(7)

HASHED_AT_ONCE = 1 << 20
"""16 million chunks (a billion cells) are put in order in 0.25 GB; hashed at once they would take twice that."""


def salt(*numbers: int) -> np.uint64:
    """One 64-bit number from several; any change of one of them gives an unrelated number."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = mix(state ^ np.uint64(number % 2**64))
    return state[0]


def permutation(size: int, seed: np.uint64) -> npt.NDArray[np.int64]:
    """0 to ``size - 1`` sorted by a hash that is a bijection, so that no two are equal; int64, (size,)."""
    hashed = np.empty(size, np.uint64)
    for first in range(0, size, HASHED_AT_ONCE):
        last = min(first + HASHED_AT_ONCE, size)
        hashed[first:last] = mix(np.arange(first, last, dtype=np.uint64) ^ seed)
    return np.argsort(hashed)


def uniforms(start: int, stop: int, seed: np.uint64) -> npt.NDArray[np.float64]:
    """Numbers ``start`` to ``stop - 1`` of a stream of independent uniforms in [0, 1); float64."""
    hashed = mix(mix(np.arange(start, stop, dtype=np.uint64)) ^ seed)
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
