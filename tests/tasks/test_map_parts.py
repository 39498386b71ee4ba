"""Parts of a mapping that need no whole run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cellfoundry as cf
from cellfoundry.task_outputs import write_mapped
from cellfoundry_model.checkpoint import load_model
from cellfoundry_serving.errors import ServingError
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.mapping import MapConfig, MapResult
from cellfoundry_tasks.mapping.integration import bbknn, harmony
from cellfoundry_tasks.mapping.joint import Joint, drawn_rows
from cellfoundry_tasks.mapping.methods import methods
from cellfoundry_tasks.mapping.scores import Judged
from cellfoundry_tasks.representation import no_expression, open_model


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, ""),
        ({"part": "gene"}, ""),
        ({"part": "cell"}, "is part 'cell' of official weights"),
        ({"part": "rde"}, "is part 'rde' of official weights"),
        ({"finetuned": {"config": {"tune": "head"}, "before": None}}, ""),
        ({"finetuned": {"config": {"tune": "last"}, "before": None}}, "has a fine-tuned encoder (tune last)"),
        (
            {
                "finetuned": {
                    "config": {"tune": "head"},
                    "before": {"config": {"tune": "lora"}, "before": None},
                }
            },
            "has a fine-tuned encoder (tune lora)",
        ),
    ],
)
def test_which_models_say_expression(small_model: Path, info: dict[str, Any], expected: str) -> None:
    lacking = no_expression(open_model(replace(load_model(small_model), info=info), device="cpu"))
    assert lacking.why.startswith(expected) if lacking and expected else lacking is None and not expected


@pytest.mark.parametrize(
    ("number", "drawn", "least"),
    [
        (4000, 4000, {"big": 90, "mid": 90, "small": 25}),  # of all cells alike, the small one would have 5
        (150, 150, {"big": 50, "mid": 50, "small": 25}),
        (25, 30, {"big": 10, "mid": 10, "small": 10}),
        (30_000, 19_120, {"big": 19_000, "mid": 95, "small": 25}),
    ],
)
def test_small_batches_are_in_the_draw(number: int, drawn: int, least: dict[str, int]) -> None:
    batch = np.repeat(["big", "mid", "small"], [19_000, 95, 25])
    cells = anndata.AnnData(sparse.csr_matrix((len(batch), 1), dtype=np.float32))
    rows = drawn_rows(Joint(cells, batch, np.full(len(batch), "a"), (), two_files=False), number, seed=0)
    assert len(rows) == drawn
    assert (np.diff(rows) > 0).all()
    assert all((batch[rows] == name).sum() >= cells_of for name, cells_of in least.items())


def test_harmony_gives_each_cell_its_own_row() -> None:
    rng = np.random.default_rng(0)
    kind = np.tile([0.0, 8.0], 60)
    places = np.stack([kind, *rng.normal(size=(3, 120))], axis=1).astype(np.float32)
    moved = harmony(places, np.repeat(["x", "y"], 60), seed=0)
    assert moved.shape == places.shape
    assert np.corrcoef(moved[:, 0], kind)[0, 1] > 0.95


@pytest.mark.parametrize(
    ("label", "labelled", "shared"),
    [
        (["a", "b"] * 20, True, True),
        (["a"] * 20 + ["b"] * 20, True, False),
        (["a"] * 19 + ["c", "c"] + ["b"] * 19, True, False),  # two cells are no sample of two batches
        (["a"] * 40, False, True),
        ([""] + ["a", "b", "a"] * 13, False, True),
    ],
)
def test_labels_that_no_two_batches_share_are_known(label: list[str], labelled: bool, shared: bool) -> None:
    judged = Judged(np.repeat(["x", "y"], 20), np.array(label), np.zeros((40, 1), dtype=np.float32))
    assert (judged.labelled, judged.shares_labels) == (labelled, shared)


def test_expression_that_a_model_lacks_is_not_joined(
    few_cells: anndata.AnnData, finetuned_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match="--features expression: the model has a fine-tuned encoder"):
        cf.tasks.map_cells(
            model=finetuned_model,
            out=tmp_path / "out",
            data=few_cells,
            batch="donor",
            label="cell_type",
            features="expression",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["data", "reference", "query"])
def test_a_source_is_never_overwritten(
    few_cells: anndata.AnnData, small_model: Path, tmp_path: Path, place: str
) -> None:
    own = tmp_path / ("cells.h5ad" if place == "data" else "query.h5ad")
    few_cells.write_h5ad(own)
    before = own.read_bytes()
    sources: dict[str, object] = {"data": own, "batch": "donor"}
    if place != "data":
        sources = {"reference": few_cells, "query": few_cells} | {place: own}
    with pytest.raises(ServingError, match="is the source itself and would be overwritten"):
        cf.tasks.map_cells(model=small_model, out=tmp_path, label="cell_type", **sources)  # type: ignore[arg-type]
    assert own.read_bytes() == before
    assert list(tmp_path.iterdir()) == [own]


@pytest.mark.parametrize("form", ["AnnData", "backed", "query.h5ad", "QUERY.H5AD", "query.csv", "query.npy"])
def test_the_written_query_keeps_its_counts(tmp_path: Path, form: str) -> None:
    counts = pd.DataFrame([[3, 0, 1], [0, 2, 5]], index=["c1", "c2"], columns=["INS", "GCG", "SST"])
    asked = anndata.AnnData(sparse.csr_matrix(counts.to_numpy(dtype=np.float32)), counts[[]], counts.T[[]])
    query: anndata.AnnData | Path = asked
    if form == "AnnData":
        asked.obs["note"] = pd.array(["x", None], dtype="string")
    if form.endswith("csv"):
        query = tmp_path / form
        counts.to_csv(query)
    elif form.endswith("npy"):
        query = tmp_path / form
        np.save(query, counts.to_numpy())
    elif form != "AnnData":
        query = tmp_path / form
        asked.write_h5ad(query)
    if form == "backed":
        query = anndata.read_h5ad(query, backed="r")
    obs = pd.DataFrame(
        {
            "batch": ["reference", "query", "query"],
            "transferred_label": pd.Categorical(["", "beta", "delta"]),
            "transferred_confidence": [np.nan, 1.0, 0.5],
        },
        index=["r1", "c1", "c2"],
    )
    cells = anndata.AnnData(obs=obs, obsm={"X_cellfoundry": np.arange(6.0).reshape(3, 2)})
    result = MapResult(
        MapConfig(label="kind"), cells, "", (), np.arange(3), (), (), (), 3, (), two_files=True
    )
    write_mapped(tmp_path / "written.h5ad", result, query, None)
    written = anndata.read_h5ad(tmp_path / "written.h5ad")
    if form.endswith("npy"):  # which names neither cells nor genes
        assert written.X.toarray().tolist() == counts.to_numpy().tolist()
    else:
        assert written.to_df().astype(int).equals(counts)
    assert written.obs["transferred_label"].tolist() == ["beta", "delta"]
    assert written.obs["transferred_confidence"].tolist() == [1.0, 0.5]
    assert written.obsm["X_cellfoundry"].tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert list(asked.obs) == (["note"] if form == "AnnData" else [])


def test_a_query_that_no_h5ad_takes_is_refused_before_the_work(
    few_cells: anndata.AnnData, small_model: Path, tmp_path: Path
) -> None:
    query = few_cells.copy()
    query.obs["mixed"] = [1, "two"] * (query.n_obs // 2) + [3] * (query.n_obs % 2)
    with pytest.raises(ServingError, match="obs column 'mixed' cannot be written"):
        cf.tasks.map_cells(
            model=small_model, out=tmp_path / "out", label="cell_type", reference=few_cells, query=query
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file/sub/out", "file"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(
    few_cells: anndata.AnnData, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TaskError, match=r"file: is a file; give a folder"):
        cf.tasks.enhance(few_cells, tmp_path / "no model", tmp_path / place)


def test_bbknn_lists_are_the_nearest_of_every_batch() -> None:
    """As many for each cell where cells share a place too: the library's graph of distances leaves those out."""
    places = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    places[:12] = places[0]
    batch = np.repeat(["x", "y", "z"], 20)
    neighbors, weights = bbknn(places, batch, per_batch=4)
    assert neighbors.indices.shape == neighbors.distances.shape == (60, 12)
    assert weights.shape == (60, 60)
    assert (neighbors.indices[:, 0] == np.arange(60)).all()
    assert (np.diff(neighbors.distances, axis=1) >= 0).all()
    apart = np.linalg.norm(places[:, None] - places[neighbors.indices], axis=2)
    np.testing.assert_allclose(np.take_along_axis(apart, np.zeros((60, 1), int), 1), 0)
    for cell in range(60):
        assert len(set(neighbors.indices[cell])) == 12
        for name in "xyz":
            own = np.flatnonzero(batch == name)
            listed = np.isin(neighbors.indices[cell], own)
            everyone = np.sort(np.linalg.norm(places[own] - places[cell], axis=1))
            np.testing.assert_allclose(np.sort(neighbors.distances[cell][listed]), everyone[:4], atol=1e-6)


def test_methods_without_a_decoder_of_expression(few_cells: anndata.AnnData) -> None:
    batch = np.repeat(["x", "y"], few_cells.n_obs // 2)
    joint = Joint(few_cells, batch, few_cells.obs["cell_type"].to_numpy(dtype=str), (), two_files=False)
    places = np.zeros((few_cells.n_obs, 2), dtype=np.float32)
    names = [method.name for method in methods(joint, places, None, places, seed=0)]
    assert "embedding + Harmony" in names
    assert not [name for name in names if "expression" in name]
