"""Permutations and random numbers as pure functions of a salt: the same on every machine and numpy release."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from cellfoundry_data.store.cell_keys import mix

# What a salt is for; the numbers that follow it count epochs, windows, batches, categories and passes.
CHUNKS, CELLS, DRAWS, QUOTAS, BLOCKS, STARTS, STEPS = range(7)

FEISTEL_ROUNDS = 24
"""With 12 some of the 720 orders of 6 numbers come more often than others; see test_loader_permutation.py."""

_mix = numba.njit(mix)


def salt(*numbers: int) -> np.uint64:
    """One 64-bit number from several; any change of one of them gives an unrelated number."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = mix(state ^ np.uint64(number % 2**64))
    return state[0]


def permutation(size: int, seed: np.uint64) -> npt.NDArray[np.int64]:
    """0 to ``size - 1`` sorted by a hash that is a bijection, so that no two are equal; int64, (size,)."""
    return np.argsort(mix(np.arange(size, dtype=np.uint64) ^ seed))


def permuted(start: int, stop: int, size: int, seed: np.uint64) -> npt.NDArray[np.int64]:
    """Elements ``start`` to ``stop - 1`` of a permutation of 0 to ``size - 1``, of which nothing else is computed;
    int64.

    A Feistel network permutes the numbers of as many bits as ``size - 1`` has; one that comes out beyond the
    last is put through it again (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", cycle walking), less
    than once on average.
    """
    keys = mix(mix(np.arange(FEISTEL_ROUNDS, dtype=np.uint64)) ^ seed)
    return _permuted(start, stop, np.uint64(size), np.uint64(max(size - 1, 1).bit_length()), keys)


@numba.njit(cache=True)
def _permuted(
    start: int, stop: int, size: np.uint64, bits: np.uint64, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    """See ``permuted``; each key changes the upper or the lower bits by a hash of the others, in turn."""
    numbers = np.empty(stop - start, np.int64)
    low_bits = bits // np.uint64(2)
    high_bits = bits - low_bits
    low_mask, high_mask = (
        (np.uint64(1) << low_bits) - np.uint64(1),
        (np.uint64(1) << high_bits) - np.uint64(1),
    )
    for place in range(start, stop):
        number = np.uint64(place)
        while True:
            low: Any = number & low_mask
            high: Any = number >> low_bits
            for key in range(0, len(keys), 2):
                high ^= _mix(low ^ keys[key]) & high_mask
                low ^= _mix(high ^ keys[key + 1]) & low_mask
            number = high << low_bits | low
            if number < size:
                break
        numbers[place - start] = number
    return numbers


def uniforms(start: int, stop: int, seed: np.uint64) -> npt.NDArray[np.float64]:
    """Numbers ``start`` to ``stop - 1`` of a stream of independent uniforms in [0, 1); float64."""
    hashed = mix(mix(np.arange(start, stop, dtype=np.uint64)) ^ seed)
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
