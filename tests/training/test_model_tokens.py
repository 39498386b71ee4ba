"""tokenize against the official script's steps written out for one cell at a time, and its refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.errors import ModelError
from cellfoundry_model.tokens import Tokens, tokenize

MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 12)),
    elements=st.one_of(st.just(0.0), st.integers(1, 70_000).map(float)),
)
DEPTHS = st.decimals(0, 8, places=2, allow_nan=False).map(str)


def one_cell(
    row: np.ndarray,
    target: str,
    input_type: str,
    pre_normalized: str,
    total: float | None,
    median: float | None,
) -> tuple[list[float], list[int]]:
    """Values and positions of one cell, in plain Python floats."""
    x = [float(value) for value in row]
    if sum(x) <= 0:
        return [math.nan, math.nan], [len(x), len(x) + 1]
    if input_type == "bulk":
        if pre_normalized == "F":
            x = [math.log1p(value * median / sum(row.astype(float))) for value in x]
        t = s = math.log10(sum(x)) if pre_normalized == "F" else sum(x)
    else:
        own = total if pre_normalized == "A" else sum(x)
        if pre_normalized == "F":
            x = [math.log1p(value / own * 1e4) for value in x]
        s = math.log10(own)
        number = float(target[1:])
        t = {"t": number, "a": s + number}.get(target[0])
        t = math.log10(own * number) if t is None else t
    genes = [gene for gene, value in enumerate(x) if value > 0]
    return [x[gene] for gene in genes] + [t, s], [*genes, len(x), len(x) + 1]


def check(tokens: Tokens, matrix: np.ndarray, **conventions: object) -> None:
    totals = conventions.pop("totals", None)
    lengths = []
    for cell, row in enumerate(matrix):
        values, positions = one_cell(row, total=None if totals is None else totals[cell], **conventions)
        own = slice(tokens.cu_seqlens[cell], tokens.cu_seqlens[cell + 1])
        np.testing.assert_allclose(tokens.value_N[own], values, rtol=1e-6, atol=1e-6)
        assert tokens.position_N[own].tolist() == positions
        lengths.append(len(values))
    assert tokens.max_seqlen == max(lengths)
    assert tokens.cu_seqlens[-1] == len(tokens.value_N) == len(tokens.position_N)
    types = (tokens.value_N.dtype, tokens.position_N.dtype, tokens.cu_seqlens.dtype)
    assert types == (np.float32, np.int64, np.int32)


@given(matrix=MATRICES, form=st.sampled_from("tfa"), number=DEPTHS, pre_normalized=st.sampled_from("FTA"))
def test_singlecell_conventions(
    cells_from_dense: Callable[..., CellBatch],
    matrix: np.ndarray,
    form: str,
    number: str,
    pre_normalized: str,
) -> None:
    target = form + ("0.5" if form == "f" and float(number) == 0 else number)
    totals = np.arange(1, len(matrix) + 1) * 1000.5 if pre_normalized == "A" else None
    tokens = tokenize(
        cells_from_dense(matrix),
        n_genes=matrix.shape[1],
        target=target,
        pre_normalized=pre_normalized,
        totals=totals,
    )
    check(
        tokens,
        matrix,
        target=target,
        input_type="singlecell",
        pre_normalized=pre_normalized,
        totals=totals,
        median=None,
    )


@given(matrix=MATRICES, pre_normalized=st.sampled_from("FT"), median=st.floats(1.0, 1e7))
def test_bulk_conventions(
    cells_from_dense: Callable[..., CellBatch], matrix: np.ndarray, pre_normalized: str, median: float
) -> None:
    conventions = {"input_type": "bulk", "pre_normalized": pre_normalized}
    given_median = median if pre_normalized == "F" else None
    tokens = tokenize(
        cells_from_dense(matrix), n_genes=matrix.shape[1], bulk_median=given_median, **conventions
    )
    check(tokens, matrix, target="t4", median=given_median, **conventions)


@given(matrix=MATRICES, seed=st.integers(0, 10))
def test_a_cells_tokens_do_not_depend_on_its_company(
    cells_from_dense: Callable[..., CellBatch], matrix: np.ndarray, seed: int
) -> None:
    batch = cells_from_dense(matrix)
    order = np.random.default_rng(seed).permutation(len(matrix))
    moved = tokenize(batch.select(order), n_genes=matrix.shape[1], target="a1.5")
    same = tokenize(batch, n_genes=matrix.shape[1], target="a1.5").select(order)
    for ours, theirs in zip(vars(moved).values(), vars(same).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_stored_zeros_are_no_tokens() -> None:
    batch = CellBatch(
        np.array([0, 3]), np.array([0, 2, 3], np.int32), np.array([0, 1, 0], np.float32), np.arange(1)
    )
    assert tokenize(batch, n_genes=4, pre_normalized="T").position_N.tolist() == [2, 4, 5]


def test_t_and_s_stay_when_they_are_not_positive(cells_from_dense: Callable[..., CellBatch]) -> None:
    batch = cells_from_dense(np.array([[0.0, 0.5, 0.0]]))
    tokens = tokenize(batch, n_genes=3, target="t0", pre_normalized="T")
    assert tokens.position_N.tolist() == [1, 3, 4]
    np.testing.assert_allclose(tokens.value_N, [0.5, 0.0, math.log10(0.5)], rtol=1e-6)


def test_no_cells_give_no_tokens(cells_from_dense: Callable[..., CellBatch]) -> None:
    tokens = tokenize(cells_from_dense(np.zeros((0, 3))), n_genes=3)
    assert tokens.value_N.shape == (0,)
    assert tokens.cu_seqlens.tolist() == [0]


@pytest.mark.parametrize(
    "target", ["", "4", "t", "x4", "t4 ", "f0", "f-1", "tnan", "t1e3", "T4", "a+1", "t4.", "t٤"]
)
def test_a_bad_target_names_the_forms(cells_from_dense: Callable[..., CellBatch], target: str) -> None:
    with pytest.raises(ModelError, match=r"use tN .*fN .*aN"):
        tokenize(cells_from_dense(np.ones((1, 3))), n_genes=3, target=target)


@pytest.mark.parametrize(
    ("conventions", "said"),
    [
        ({"input_type": "bulk", "pre_normalized": "A"}, "use F or T with input type bulk"),
        ({"input_type": "bulk"}, "give it as bulk_median"),
        ({"input_type": "bulk", "bulk_median": 0.0}, "got 0.0"),
        ({"input_type": "bulk", "bulk_median": math.nan}, "got nan"),
        ({"input_type": "tissue"}, "use singlecell or bulk"),
        ({"pre_normalized": "X"}, "use F, T or A"),
        ({"pre_normalized": "A"}, "give totals"),
        ({"pre_normalized": "A", "totals": [1.0]}, "one total count a cell"),
        ({"pre_normalized": "A", "totals": [3.0, 0.0]}, "total count of row 1 is 0"),
        ({"pre_normalized": "A", "totals": [math.nan, 1.0]}, "total count of row 0 is nan"),
        ({"n_genes": 2}, "gene 2 but the model has 2 genes"),
    ],
)
def test_refusals(
    cells_from_dense: Callable[..., CellBatch], conventions: dict[str, object], said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        tokenize(cells_from_dense(np.ones((2, 3))), **{"n_genes": 3, **conventions})
    assert said in str(caught.value)
