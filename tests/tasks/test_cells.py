"""Cells of a task: the genes are those that embed finds, the labels those that a user sees."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellfoundry_data.errors import DataError
from cellfoundry_tasks.annotate.config import build_config
from cellfoundry_tasks.annotate.counts import normalised
from cellfoundry_tasks.annotate.labelled import read_labelled
from cellfoundry_tasks.cells import aligned, chosen_rows, labels_of, read_counts
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.mapping.joint import joint_batches, joint_reference

VOCAB = ("CD3D", "NKX2", "NKX2-1", "LYZ", "INS", "GCG")
CELLS = 40


def counts(columns: int) -> np.ndarray:
    return np.random.default_rng(0).poisson(3, (CELLS, columns)).astype(np.float32) + 1


def cells_of(names: list[str], **columns: list[str]) -> ad.AnnData:
    obs = pd.DataFrame({"kind": ["a", "b"] * (CELLS // 2)}, index=[f"cell{row}" for row in range(CELLS)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata remarks on repeated gene names, which are what is tested
        return ad.AnnData(
            sp.csr_matrix(counts(len(names))), obs=obs, var=pd.DataFrame(columns, index=names, dtype=object)
        )


SOURCES = {
    # anndata would call the second NKX2 by the name of another gene.
    "repeated": cells_of(["CD3D", "NKX2", "NKX2", "LYZ", "mine"]),
    "symbols in a column": cells_of(
        ["id1", "id2", "id3"], chromosome=["1", "2", "2"], symbol=["GCG", "LYZ", "INS"]
    ),
    "repeated, but told apart by a column": cells_of(
        ["LYZ", "LYZ", "LYZ", "INS"], kind=["gene"] * 4, feature_name=["LYZ", "GCG", "CD3D", "INS"]
    ),
}


@pytest.mark.filterwarnings("ignore:.*gene columns repeat a gene")
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_genes_are_found_as_in_the_source_itself(source: str, in_memory: bool, tmp_path: Path) -> None:
    cells = SOURCES[source]
    place: ad.AnnData | Path = cells
    if not in_memory:
        place = tmp_path / "cells.h5ad"
        cells.write_h5ad(place)
    expected, read = aligned(place, VOCAB), read_counts(place)
    config = build_config({"label": "kind"})
    for found in (aligned(read, VOCAB), aligned(read_labelled(place, config).cells, VOCAB)):
        assert found.var_names.tolist() == expected.var_names.tolist()
        assert (found.X != expected.X).nnz == 0
    assert read.X.sum() == cells.X.sum()


def test_repeated_genes_are_summed_and_have_names_of_their_own_for_celltypist() -> None:
    cells = read_counts(SOURCES["repeated"])
    with pytest.warns(UserWarning, match="1 gene columns repeat a gene"):
        found = aligned(cells, VOCAB)
    assert found.var_names.tolist() == ["CD3D", "NKX2", "LYZ"]
    assert np.array_equal(found[:, "NKX2"].X.toarray(), counts(5)[:, [1, 2]].sum(1, keepdims=True))
    assert normalised(cells).var_names.is_unique


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_a_matrix_without_names_has_the_vocabularys_genes(form: str, tmp_path: Path) -> None:
    place = tmp_path / f"cells.{form}"
    if form == "npy":
        np.save(place, counts(len(VOCAB)))
    else:
        sp.save_npz(place, sp.csr_matrix(counts(len(VOCAB))))
    cells = read_counts(place)
    for read in (cells, cells[10:].copy(), read_counts(cells)):
        found = aligned(read, VOCAB)
        assert found.var_names.tolist() == list(VOCAB)
        assert np.array_equal(found.X.toarray(), counts(len(VOCAB))[-read.n_obs :])
    with pytest.raises(DataError, match=rf"cells.{form}: has 6 columns, but a file without gene names"):
        aligned(cells, VOCAB[:5])


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, 2, 3], ["1", "2", "3"]),
        ([1, None, 3], ["1", "", "3"]),
        (pd.Categorical([1.0, None, 3.0]), ["1", "", "3"]),
        (pd.array([1, None, 3], dtype="Int64"), ["1", "", "3"]),
        (np.array([1, np.nan, 0.5], dtype=np.float32), ["1", "", "0.5"]),
        (np.array([1.0, "1", None], dtype=object), ["1", "1", ""]),
        ([np.inf, 1e20, -0.0], ["inf", "100000000000000000000", "0"]),
        (pd.Categorical(["x", None, ""]), ["x", "", ""]),
        ([True, False, True], ["True", "False", "True"]),
        ([None, None, None], ["", "", ""]),
    ],
)
def test_labels_are_what_a_user_sees(values: object, labels: list[str]) -> None:
    cells = ad.AnnData(np.ones((3, 1), np.float32))
    cells.obs["kind"] = values
    assert labels_of(cells, "kind").tolist() == labels


def test_numbered_classes_are_left_out_by_their_number() -> None:
    cells = cells_of(["INS", "GCG"])
    cells.obs["kind"] = [1, 2, 3, None] * 10
    config = build_config({"label": "kind", "unlabelled": ["2"]})
    assert read_labelled(cells, config).classes == ("1", "3")
    cells.obs["held"] = [1.0, 0.0] * (CELLS // 2)
    assert chosen_rows(cells, "held").tolist() == [True, False] * (CELLS // 2)


def test_a_column_that_is_there_twice_is_told_of() -> None:
    cells = cells_of(["INS", "GCG"])
    cells.obs = pd.concat([cells.obs, cells.obs], axis=1)
    with pytest.raises(TaskError, match="obs has 2 columns 'kind'; rename all but one of them"):
        read_labelled(cells, build_config({"label": "kind"}))


def test_lists_are_no_labels() -> None:
    cells = cells_of(["INS", "GCG"])
    cells.obs["kind"] = [["a"]] * CELLS
    with pytest.raises(TaskError, match="obs column 'kind' holds lists or other values that are no labels"):
        labels_of(cells, "kind")


def test_a_value_to_leave_out_that_no_cell_has_is_told_of_with_those_there_are() -> None:
    cells = cells_of(["INS", "GCG"])
    cells.obs["batch"] = ["x"] * (CELLS // 2) + ["y"] * (CELLS // 2)
    message = (
        "no cell has 'none' in obs column 'kind', so --unlabelled 'none' leaves none out; there are: a, b$"
    )
    with pytest.raises(TaskError, match=message):
        read_labelled(cells, build_config({"label": "kind", "unlabelled": ["a", "none"]}))
    with pytest.raises(TaskError, match=message):
        joint_batches(cells, VOCAB, batch="batch", label="kind", unlabelled=["none"])
    cells.obs["kind"] = [f"kind{row:02}" for row in range(CELLS)]
    with pytest.raises(TaskError, match=r"there are: kind00, .*, kind09 and 30 more$"):
        read_labelled(cells, build_config({"label": "kind", "unlabelled": ["none"]}))


def test_a_value_to_leave_out_may_be_in_the_query_alone() -> None:
    reference, query = (ad.concat([cells_of(["INS", "GCG"])] * 2, index_unique="-") for _ in range(2))
    query.obs["kind"] = ["a", "none"] * CELLS
    joint = joint_reference(reference, query, VOCAB, label="kind", unlabelled=["none"])
    assert sorted(set(joint.label.tolist())) == ["", "a", "b"]
    del query.obs["kind"]
    with pytest.raises(TaskError, match="no cell has 'none' in obs column 'kind'"):
        joint_reference(reference, query, VOCAB, label="kind", unlabelled=["none"])
