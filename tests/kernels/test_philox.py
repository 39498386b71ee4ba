"""Philox4x32-10 against the known-answer vectors of Random123 (kat_vectors, Salmon et al. 2011)."""

from __future__ import annotations

import numpy as np
import pytest

from cellfoundry_kernels import philox
from cellfoundry_kernels.philox import philox4x32

VECTORS = {
    "zeros": (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    "ones": (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    "digits-of-pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_known_answers(name: str) -> None:
    counter, key, words = VECTORS[name]
    c0, c1, c2, c3 = (np.array([word], dtype=np.uint64) for word in counter)
    assert philox4x32((c0, c1, c2, c3), key).tolist() == [list(words)]


def test_counters_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns, zero = (x.astype(np.uint64) for x in (np.arange(30)[:, None], np.arange(5), np.array(0)))
    words = philox4x32((columns, rows, zero, zero), (1, 2))
    assert words.shape == (30, 5, 4)
    assert (words[22, 4] == philox4x32((columns[4:], rows[22], zero, zero), (1, 2))).all()
    assert len(np.unique(words)) == words.size
    # Rows are taken a few at a time; here four, the last two.
    monkeypatch.setattr(philox, "_BLOCK", 20)
    assert (philox4x32((columns, rows, zero, zero), (1, 2)) == words).all()
    assert philox4x32((columns[:0], rows, zero, zero), (1, 2)).shape == (30, 0, 4)
