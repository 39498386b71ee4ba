"""What stands beside a model without being one."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellfoundry_tasks.baselines import highly_variable


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_of_few_genes_all_that_vary_are_chosen_without_a_warning(form: type) -> None:
    counts = np.random.default_rng(0).poisson(2.0, (30, 40)).astype(np.float32)
    counts[:, 30:] = 0
    chosen = highly_variable(form(np.log1p(counts)))
    assert chosen.tolist() == [True] * 30 + [False] * 10
