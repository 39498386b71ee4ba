"""Differences of macro-F1 with intervals over other cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfoundry_tasks.annotate.folds import macro_f1
from cellfoundry_tasks.annotate.other_cells import Classes, differences, weighted_macro_f1
from cellfoundry_tasks.annotate.splits import FewShot

CELLS, CLASSES, SEEDS = 300, 3, 4


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30
    ).filter(lambda cells: any(weight for *_, weight in cells))
)
def test_a_weight_counts_a_cell_so_often(cells: list[tuple[int, int, int]]) -> None:
    true, called, weights = np.array(cells).T
    expected = macro_f1(np.repeat(true, weights), np.repeat(called, weights))
    (found,) = weighted_macro_f1(true, called, weights[None].astype(np.float32))
    assert found == pytest.approx(expected, abs=1e-6)


def called_by(true: Classes, right: float, seed: int) -> Classes:
    """Classes of which a share is right."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(true)) < right, true, (true + 1) % CLASSES)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_better_is_told_from_what_is_not(shared: bool) -> None:
    class_C = np.arange(CELLS) % CLASSES
    tests = [
        np.sort(np.random.default_rng(seed * (not shared)).permutation(CELLS)[:150]) for seed in range(SEEDS)
    ]
    splits = [FewShot(np.setdiff1d(np.arange(CELLS), test), test) for test in tests]
    called = {
        name: [called_by(class_C[split.test], right, 10 * number + seed) for seed, split in enumerate(splits)]
        for number, (name, right) in enumerate({"pca": 0.8, "better": 0.95, "as good": 0.8}.items())
    }
    found = differences(called, "pca", class_C, splits)
    assert found["pca"] == (0.0, 0.0, 0.0)
    for name, (mean, low, high) in found.items():
        gaps = [
            macro_f1(class_C[split.test], called[name][seed])
            - macro_f1(class_C[split.test], called["pca"][seed])
            for seed, split in enumerate(splits)
        ]
        assert mean == pytest.approx(np.mean(gaps), abs=1e-6)
        assert low <= mean <= high
    assert found["better"][1] > 0.08
    assert found["as good"][1] < 0 < found["as good"][2]


def test_few_test_cells_leave_more_open() -> None:
    """Although each seed says the same."""
    widths = []
    for cells in (30, 300):
        class_C = np.arange(cells) % CLASSES
        splits = [FewShot(np.arange(0), np.arange(cells))] * SEEDS
        called = {"pca": [called_by(class_C, 0.7, 1)] * SEEDS, "model": [called_by(class_C, 0.9, 2)] * SEEDS}
        _, low, high = differences(called, "pca", class_C, splits)["model"]
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 0
