"""Parts of a batch of cells."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cellfoundry_data.batch import CellBatch


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_neighbours_are_the_cells_that_select_gives_and_copy_no_entries(
    lengths: list[int], data: st.DataObject
) -> None:
    indptr = np.cumsum([0, *lengths])
    genes = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    cells = len(lengths)
    batch = CellBatch(
        indptr,
        genes,
        np.arange(1, len(genes) + 1, dtype=np.float32),
        np.arange(cells) + 7,
        {"batch": np.arange(cells) % 2},
    )
    start = data.draw(st.integers(0, cells))
    stop = data.draw(st.integers(start, cells))
    part, expected = batch.between(start, stop), batch.select(np.arange(start, stop))
    for name in ("indptr", "gene_ids", "counts", "row_ids"):
        np.testing.assert_array_equal(getattr(part, name), getattr(expected, name))
    np.testing.assert_array_equal(part.obs["batch"], expected.obs["batch"])
    assert not part.nnz or np.shares_memory(part.counts, batch.counts)
