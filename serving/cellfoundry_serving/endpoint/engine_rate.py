"""How long an engine takes for so many tokens, learned from its recent batches."""

from __future__ import annotations

import math

import numpy as np

MEMORY_S = 10.0  # of computing: an older batch counts for less than 1/e
LEAST_SPREAD = (
    0.05  # of the batches' sizes, relative, from which one can tell the time of a batch from that of a token
)
CALL_S = 0.005  # of a batch, at most, whatever is in it: as long as nothing tells
USUAL_TOKENS = 1000  # of a cell


class EngineRate:
    """Least squares of batches' seconds over their tokens: a time for each batch, and one for each token.

    As long as all batches are of like size nothing tells the two apart: then up to CALL_S is taken for the batch's, and
    fewer tokens than a usual cell's for as many, so that short cells do not make the engine look slow in full batches.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, tokens, seconds, tokens^2 and tokens * seconds, which fade together

    def ran(self, tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self._sums *= math.exp(-seconds / MEMORY_S)
        self._sums += (1, tokens, seconds, tokens**2, tokens * seconds)

    def seconds(self, tokens: float, batches: float) -> float:
        """How long so many tokens take in so many batches; 0 before the first batch, when nothing is known."""
        count, sizes, times, squares, products = self._sums.tolist()
        if not count:
            return 0.0
        size, time = sizes / count, times / count
        spread = squares / count - size**2
        if spread > (LEAST_SPREAD * size) ** 2:
            of_token = min(max(0.0, (products / count - size * time) / spread), time / size)
            of_batch = time - of_token * size
        else:
            of_batch = min(time, CALL_S)
            of_token = (time - of_batch) / max(size, USUAL_TOKENS)
        return batches * of_batch + tokens * of_token
