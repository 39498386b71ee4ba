"""Permutations of which any part can be computed alone: complete, uniform, and unrelated from seed to seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from cellfoundry_data.loader.permutation import permuted, salt

LEAST_P = 1e-4
"""Of a test that passes: one of ten thousand right programs would fail, and seeds are fixed."""


@settings(deadline=None)  # the first call compiles
@given(
    size=st.integers(1, 3000), cuts=st.lists(st.integers(0, 3000), max_size=5), seed=st.integers(0, 2**64 - 1)
)
def test_parts_put_together_are_a_permutation(size: int, cuts: list[int], seed: int) -> None:
    bounds = [0, *sorted(min(cut, size) for cut in cuts), size]
    parts = [permuted(first, last, size, np.uint64(seed)) for first, last in pairwise(bounds)]
    whole = np.concatenate(parts)
    np.testing.assert_array_equal(np.sort(whole), np.arange(size))
    np.testing.assert_array_equal(whole, permuted(0, size, size, np.uint64(seed)))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_every_order_of_a_few_comes_equally_often(size: int) -> None:
    rounds = 60 * factorial(size)
    seen = Counter(tuple(permuted(0, size, size, salt(seed, size)).tolist()) for seed in range(rounds))
    counts = np.zeros(factorial(size))
    counts[: len(seen)] = list(seen.values())
    assert chisquare(counts).pvalue > LEAST_P


@pytest.mark.parametrize("size", [7, 8, 12, 16, 17, 100, 256])
def test_neighbouring_places_hold_any_two_numbers(size: int) -> None:
    rounds = 40 * size
    firsts = np.array([permuted(0, 3, size, salt(seed, size)) for seed in range(rounds)])
    for place in range(3):
        assert chisquare(np.bincount(firsts[:, place], minlength=size)).pvalue > LEAST_P
    for one, other in ((0, 1), (1, 2)):
        distance = (firsts[:, one] - firsts[:, other]) % size
        assert chisquare(np.bincount(distance, minlength=size)[1:]).pvalue > LEAST_P


def test_a_window_of_a_huge_permutation_costs_no_more_than_itself() -> None:
    size = 2**40 + 7
    part = permuted(size - 128, size, size, salt(3))
    assert len(np.unique(part)) == 128
    assert part.min() >= 0
    assert part.max() < size
    # 128 numbers spread over the whole range: the mean of 16 bins of 8.
    assert chisquare(np.bincount(part * 16 // size, minlength=16)).pvalue > LEAST_P
