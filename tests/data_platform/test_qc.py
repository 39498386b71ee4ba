"""Quality of cells: measured like a plain reference, judged in a fixed order, and counted in histograms."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.errors import DataError
from cellfoundry_data.qc import (
    EDGES,
    FILTERS,
    CellQuality,
    QcHistograms,
    QcLimits,
    cell_quality,
    mitochondrial_genes,
)
from cellfoundry_data.vocabulary import Vocabulary, load

GENES = Vocabulary(("mt-nd1", "A", "MT-CO1", "MTOR", "B", "Mt-x", "C", "XMT-1"))

counts = st.integers(0, 1000).map(float)
dense_cells = st.lists(st.lists(counts, min_size=len(GENES), max_size=len(GENES)), max_size=12)


def as_batch(dense: list[list[float]]) -> CellBatch:
    values = np.array(dense, np.float32).reshape(-1, len(GENES))
    rows, genes = np.nonzero(values)
    indptr = np.searchsorted(rows, np.arange(len(values) + 1)).astype(np.int64)
    return CellBatch(
        indptr, genes.astype(np.int32), values[rows, genes], np.arange(len(values), dtype=np.int64)
    )


@settings(deadline=None)  # the first example compiles
@given(dense_cells)
def test_quality_is_what_the_dense_matrix_says(dense: list[list[float]]) -> None:
    quality = cell_quality(as_batch(dense), GENES)
    assert len(quality) == len(dense)
    for cell, row in enumerate(dense):
        mito = sum(
            value for gene, value in zip(GENES.genes, row, strict=True) if gene.lower().startswith("mt-")
        )
        assert quality.n_genes[cell] == sum(value > 0 for value in row)
        assert quality.total_counts[cell] == sum(row)
        assert quality.mito_share[cell] == np.float32(mito / sum(row) if sum(row) else 0)
    assert quality.n_genes.dtype == np.int32
    assert quality.total_counts.dtype == np.float64
    assert quality.mito_share.dtype == np.float32


def test_mitochondrial_genes_of_the_shipped_vocabulary() -> None:
    vocab = load("scfoundation")
    found = [vocab.genes[gene] for gene in mitochondrial_genes(vocab)]
    assert {"MT-CO1", "MT-ND4L", "MT-RNR2", "MT-TY"} <= set(found)
    assert all(name.startswith("MT-") for name in found)


def test_a_vocabulary_without_mitochondrial_genes_has_no_share_to_judge() -> None:
    vocab = Vocabulary(("A", "B"))
    cells = CellBatch(
        np.array([0, 2]), np.array([0, 1], np.int32), np.ones(2, np.float32), np.zeros(1, np.int64)
    )
    assert cell_quality(cells, vocab).mito_share.tolist() == [0]
    QcLimits(min_genes=2).check(vocab)
    with pytest.raises(DataError, match=r"max_mito_share cannot be judged: no gene .* named MT-"):
        QcLimits(min_genes=2, max_mito_share=0.2).check(vocab)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (QcLimits(min_genes=0, min_total=10, max_total=9), "min_total 10 is above max_total 9"),
        (QcLimits(), "min_genes 200 is more than the 8 genes"),
    ],
)
def test_limits_that_no_cell_can_meet(limits: QcLimits, says: str) -> None:
    with pytest.raises(DataError, match=says):
        limits.check(GENES)


@pytest.mark.parametrize(
    "wrong",
    [{"max_mito_share": 1.5}, {"min_genes": -1}, {"min_gene": 3}, {"max_total": -2.0}, {"max_total": np.inf}],
)
def test_limits_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        QcLimits(**wrong)  # type: ignore[arg-type]


limits = st.builds(
    QcLimits,
    min_genes=st.integers(0, 9),
    max_mito_share=st.none() | st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    min_total=st.none() | st.integers(0, 3000).map(float),
    max_total=st.none() | st.integers(0, 3000).map(float),
)


@settings(deadline=None)
@given(dense_cells, limits)
def test_each_removed_cell_counts_under_its_first_filter(dense: list[list[float]], limits: QcLimits) -> None:
    quality = cell_quality(as_batch(dense), GENES)
    keep, removed = limits.judge(quality)
    expected = dict.fromkeys(FILTERS, 0)
    for cell in range(len(dense)):
        genes, total = quality.n_genes[cell], quality.total_counts[cell]
        if genes == 0:
            first = "without_counts"
        elif genes < limits.min_genes:
            first = "min_genes"
        elif limits.min_total is not None and total < limits.min_total:
            first = "min_total"
        elif limits.max_total is not None and total > limits.max_total:
            first = "max_total"
        elif limits.max_mito_share is not None and quality.mito_share[cell] > np.float32(
            limits.max_mito_share
        ):
            first = "max_mito_share"
        else:
            assert keep[cell]
            continue
        assert not keep[cell]
        expected[first] += 1
    assert removed == expected
    assert list(removed) == list(FILTERS)


def test_limits_themselves_are_good_values() -> None:
    quality = CellQuality(np.array([3], np.int32), np.array([10.0]), np.array([0.2], np.float32))
    keep, _ = QcLimits(min_genes=3, max_mito_share=0.2, min_total=10, max_total=10).judge(quality)
    assert keep.tolist() == [True]


qualities = st.lists(
    st.tuples(st.integers(0, 20_000), st.floats(0, 1e12), st.floats(0, 1, width=32), st.booleans()),
    max_size=40,
)


def measured(cells: list[tuple[int, float, float, bool]]) -> tuple[CellQuality, np.ndarray]:
    genes, totals, shares, keep = zip(*cells, strict=True) if cells else ((), (), (), ())
    quality = CellQuality(
        np.array(genes, np.int32), np.array(totals, np.float64), np.array(shares, np.float32)
    )
    return quality, np.array(keep, bool)


@settings(deadline=None)  # the first example imports
@given(qualities, qualities)
def test_histograms_add_up_and_come_back(first: list, second: list) -> None:
    parts = []
    for cells in (first, second):
        histograms = QcHistograms()
        histograms.add(*measured(cells))
        parts.append(histograms)
    whole = QcHistograms()
    whole.add(*measured(first + second))
    parts[0].merge(parts[1])
    through_json = QcHistograms.from_dict(json.loads(json.dumps(whole.to_dict())))
    tables = pa.concat_tables([whole.to_table("a"), parts[1].to_table("b")])
    through_table = QcHistograms.from_table(tables).get("a", QcHistograms())
    for name, edges in EDGES.items():
        expected = np.zeros((2, len(edges) - 1), np.int64)
        quality, keep = measured(first + second)
        for value, kept in zip(getattr(quality, name).tolist(), keep, strict=True):
            place = int(np.flatnonzero(edges <= value)[-1])
            expected[:, place] += (1, kept)
        for histograms in (whole, parts[0], through_json, through_table):
            np.testing.assert_array_equal(getattr(histograms, name), expected)


def test_the_table_says_what_its_bins_hold() -> None:
    histograms = QcHistograms()
    histograms.add(*measured([(150, 1000.0, 0.25, True), (150, 0.5, 0.999, False)]))
    table = histograms.to_table("one.h5ad").to_pandas()
    assert set(table["source"]) == {"one.h5ad"}
    expected: dict[str, list[float]] = {
        "total_counts": [0.5, 1000],
        "n_genes": [150, 150],
        "mito_share": [0.25, 0.999],
    }
    for quantity, values in expected.items():
        rows = table[table["quantity"] == quantity]
        assert rows["cells_read"].sum() == 2
        assert rows["cells_kept"].sum() == 1
        for value in values:
            assert ((rows["low"] <= value) & (value < rows["high"])).sum() == 1


def test_a_table_of_other_bins_is_refused() -> None:
    histograms = QcHistograms()
    histograms.add(*measured([(150, 1000.0, 0.25, True)]))
    table = histograms.to_table("a")
    moved = table.set_column(2, "low", pa.array(table["low"].to_numpy() + 0.001))
    with pytest.raises(DataError, match=r"a bin of total_counts at .* unknown to this version"):
        QcHistograms.from_table(moved)
    with pytest.raises(DataError, match="has not the columns source, quantity"):
        QcHistograms.from_table(table.drop(["quantity"]))
