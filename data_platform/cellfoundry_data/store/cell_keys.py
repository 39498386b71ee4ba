"""One 64-bit key a cell, from which the global shuffle and the train/validation split follow.

A cell is (index of its source, row in its source); splitmix64's finaliser (Steele, Lea, Flood 2014, "Fast
splittable pseudorandom number generators") spreads that pair over 64 bits. It is a bijection: different cells
never share a key.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_SOURCE_ROWS = 2**40
"""Rows of one source that a key can tell apart."""


def mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's step on each element: add the golden gamma, then two xor-shift-multiply rounds, modulo
    2^64.
    """
    mixed = value + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def cell_keys(source: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Keys of ``rows`` of the source number ``source``: mix(source * 2^40 + row)."""
    return mix(np.uint64(source * MAX_SOURCE_ROWS) + rows.astype(np.uint64))


def shuffle_keys(keys: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """The keys by which the cells of a store are sorted: mix(key xor mix(seed))."""
    return mix(keys ^ mix(np.array([seed % 2**64], np.uint64)))


def buckets(shuffled: npt.NDArray[np.uint64], n_buckets: int) -> npt.NDArray[np.int64]:
    """Bucket of each shuffle key: equal ranges of the key's upper 32 bits, so buckets in order are the sorted
    order.
    """
    return ((shuffled >> np.uint64(32)) * np.uint64(n_buckets) >> np.uint64(32)).astype(np.int64)


def in_validation(keys: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """Which cells belong to the validation split: those with key / 2^64 < share, whatever the seed of the
    shuffle.
    """
    return (keys >> np.uint64(11)).astype(np.float64) < share * 2.0**53
