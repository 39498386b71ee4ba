"""Philox4x32-10, a counter-based random generator (Salmon et al. 2011, "Parallel random numbers").

A random word is a pure function of (counter, key), so it is the same on any device, in any order and in any
batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW_32 = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """Four random 32-bit words for each counter.

    Args:
        counter: Four int64 tensors of words in [0, 2^32) that broadcast against each other.
        key: Two words in [0, 2^32).

    Returns:
        int64, (..., 4), words in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64, which keeps all the bits of a 32 x 32 bit product. Their upper halves
        # stay in c1 and c3 until the end, because every use of those is masked anyway.
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0 = (product_1 >> 32 ^ c1).bitwise_xor_(k0).bitwise_and_(_LOW_32)
        c2 = (product_0 >> 32 ^ c3).bitwise_xor_(k1).bitwise_and_(_LOW_32)
        c1, c3 = product_1, product_0
        k0, k1 = (k0 + _WEYL_0) & _LOW_32, (k1 + _WEYL_1) & _LOW_32
    return torch.stack([c0, c1 & _LOW_32, c2, c3 & _LOW_32], -1)
