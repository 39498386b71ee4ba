from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cellfoundry_serving.token_batches import consecutive, padded

lengths = st.lists(st.integers(2, 60), max_size=40).map(lambda values: np.array(values, dtype=np.int64))


@given(lengths, st.integers(2, 100), st.integers(1, 8))
def test_consecutive_covers_all_cells_in_order_within_the_budget(
    tokens: np.ndarray, max_tokens: int, max_cells: int
) -> None:
    parts = list(consecutive(tokens, max_tokens, max_cells))
    assert [cell for part in parts for cell in part] == list(range(len(tokens)))
    assert all(1 <= len(part) <= max_cells for part in parts)
    assert all(len(part) == 1 or tokens[part.start : part.stop].sum() <= max_tokens for part in parts)


@given(lengths, st.integers(2, 100), st.integers(1, 8))
def test_padded_holds_every_cell_once_within_the_budget(
    tokens: np.ndarray, max_tokens: int, max_cells: int
) -> None:
    groups = list(padded(tokens, max_tokens, max_cells))
    assert sorted(cell for group in groups for cell in group) == list(range(len(tokens)))
    assert all(1 <= len(group) <= max_cells for group in groups)
    assert all(len(group) == 1 or len(group) * tokens[group].max() <= max_tokens for group in groups)
