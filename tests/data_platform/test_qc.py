"""Quality filters on aligned cells."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellfoundry_data.qc import FilterCounts, filter_cells, genes_per_cell
from cellfoundry_data.source_cells import aligned_cells


@given(
    dense=hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(1, 6)), elements=st.integers(0, 3)),
    min_genes=st.integers(0, 7),
)
def test_min_genes_counts_genes_not_counts(dense: np.ndarray, min_genes: int) -> None:
    batch = aligned_cells(sp.csr_matrix(dense), np.arange(dense.shape[1], dtype=np.int32), dense.shape[1])
    expressed = (dense > 0).sum(axis=1)
    keep, counts = filter_cells(batch, min_genes=min_genes)
    assert genes_per_cell(batch).tolist() == expressed.tolist()
    assert keep.tolist() == (expressed >= min_genes).tolist()
    assert counts == FilterCounts(cells=len(dense), removed_min_genes=int((~keep).sum()))
    assert counts.kept == keep.sum()


def test_counts_of_blocks_add_up() -> None:
    total = sum([FilterCounts(10, 3), FilterCounts(5, 5)], FilterCounts())
    assert total == FilterCounts(cells=15, removed_min_genes=8)
    assert total.kept == 7
