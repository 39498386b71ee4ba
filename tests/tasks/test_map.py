"""Mapping on simulated batches: kinds with genes of their own, protocols with depths and biases of their own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import cellfoundry as cf
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import load_model, save_model
from cellfoundry_model.config import ModelConfig
from cellfoundry_model.presets import PRESETS
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.mapping import MapResult
from cellfoundry_tasks.mapping.integration import principal_axes
from cellfoundry_tasks.mapping.transfer import Carried, Graph, carry, right_by_confidence, score
from cellfoundry_tasks.representation import open_model, represent

GENES = Vocabulary.named("scfoundation").genes[:120]
KINDS = ("alpha", "beta", "delta")
DEPTH = {"droplet": 300, "plate": 1200, "split": 600}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)  # not that of the random twin
    folder = tmp_path_factory.mktemp("model") / "small"
    config = ModelConfig.from_dict(PRESETS["tiny"].to_dict() | {"n_genes": len(GENES)})
    save_model(CellModel(config), GENES, folder, {"steps": 7})
    return folder


def simulated(batches: tuple[str, ...], cells_of_batch: int = 90, seed: int = 0) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    profile = np.random.default_rng(1).gamma(0.6, 1.0, (len(KINDS), len(GENES))) + 0.02
    blocks, obs = [], []
    for number, batch in enumerate(batches):
        kind = np.arange(cells_of_batch) % len(KINDS)
        bias = np.random.default_rng(10 + number).lognormal(0.0, 0.3, len(GENES))
        rate = profile[kind] * bias
        blocks.append(rng.poisson(DEPTH[batch] * rate / rate.sum(1, keepdims=True)))
        obs.append(pd.DataFrame({"protocol": batch, "kind": np.array(KINDS)[kind]}))
    frame = pd.concat(obs, ignore_index=True)
    frame.index = [f"cell{row}" for row in range(len(frame))]
    counts = sparse.csr_matrix(np.concatenate(blocks).astype(np.float32))
    return anndata.AnnData(counts, obs=frame, var=pd.DataFrame(index=list(GENES)))


@pytest.fixture(scope="module")
def mapped(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[MapResult, Path]:
    out = tmp_path_factory.mktemp("mapped") / "report"
    cells = simulated(("droplet", "plate", "split"))
    return cf.tasks.map_cells(model=model_dir, out=out, data=cells, batch="protocol", label="kind"), out


def test_every_method_has_its_scores_and_transfer(mapped: tuple[MapResult, Path]) -> None:
    result, _ = mapped
    assert [method.name for method in result.methods] == [
        *("PCA", "PCA + Harmony", "PCA + BBKNN", "Scanorama"),
        *("embedding", "embedding + Harmony", "embedding + BBKNN"),
        *("enhanced expression", "enhanced expression + Harmony", "enhanced expression + BBKNN"),
        "random weights + Harmony",
    ]
    for method in result.methods:
        assert {"cLISI", "iLISI", "KBET", "Graph connectivity"} <= method.scores.keys(), method.name
        assert all(-1 <= value <= 1 + 1e-6 for value in method.scores.values()), method.scores
        assert ("Total" in method.scores) == ("BBKNN" not in method.name)
        assert method.transfer
        assert [name for name, *_ in method.transfer.batches] == ["droplet", "plate", "split"]
        assert method.transfer.over == "left-out batches"
    harmony = result.of("PCA + Harmony")
    assert harmony.transfer
    assert harmony.transfer.accuracy.mean > 0.95
    assert harmony.scores["PCR comparison"] > 0.5  # most of what batches explain of PCA is gone


def test_the_folder_holds_report_record_and_cells(mapped: tuple[MapResult, Path]) -> None:
    result, out = mapped
    assert sorted(path.name for path in out.iterdir()) == ["cells.h5ad", "report.html", "result.json"]
    record = json.loads((out / "result.json").read_text())
    assert record["batches"] == {"droplet": 90, "plate": 90, "split": 90}
    assert len(record["methods"]) == 11
    page = (out / "report.html").read_text()
    for text in ("embedding + Harmony against PCA + Harmony", "steps 7", "3 left-out batches", "reproduces"):
        assert text in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    cells = anndata.read_h5ad(out / "cells.h5ad")
    assert cells.n_obs == 270
    assert cells.obsm["X_cellfoundry_harmony"].shape[0] == 270
    right = (cells.obs["transferred_label"] == cells.obs["label"].astype(str)).mean()
    assert right == pytest.approx(result.confidence[0][2])


def test_a_query_without_labels_takes_those_of_the_reference(
    model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By a model whose encoder was fine-tuned, so that its expression is not compared."""
    loaded = load_model(model_dir)
    tuned = {"finetuned": {"config": {"tune": "full"}, "before": None}}
    save_model(loaded.model, GENES, tmp_path / "tuned", tuned)
    reference, query = simulated(("plate",)), simulated(("droplet",), seed=3)
    truth = query.obs.pop("kind")
    query.write_h5ad(tmp_path / "query.h5ad")
    state, python_state = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    result = cf.tasks.map_cells(
        model=tmp_path / "tuned",
        out=tmp_path / "out",
        reference=reference,
        query=tmp_path / "query.h5ad",
        label="kind",
    )
    assert capfd.readouterr() == ("", "")
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert random.getstate() == python_state
    assert not [method.name for method in result.methods if "expression" in method.name]
    assert result.left_out == (
        "the model's expression: the model has a fine-tuned encoder (tune full), which its decoder no longer fits",
    )
    assert result.of("PCA").transfer is None
    assert result.of("PCA").scores.keys() == {"iLISI", "PCR comparison"}
    written = anndata.read_h5ad(tmp_path / "out" / "query.h5ad")
    assert (written.obs_names == query.obs_names).all()
    assert (written.X != query.X).nnz == 0
    assert (written.obs["transferred_label"].astype(str) == truth.to_numpy()).mean() > 0.9
    assert written.obs["transferred_confidence"].between(0, 1).all()
    assert written.obsm["X_cellfoundry"].shape == (90, 128)


def test_expression_is_joined_and_carries_the_labels_where_asked_for(model_dir: Path, tmp_path: Path) -> None:
    """Of more cells than are compared, the others are brought to the same axes."""
    reference, query = simulated(("plate",)), simulated(("split",), seed=3)
    truth = query.obs.pop("kind").to_numpy()
    told: list[tuple[str, int, int]] = []
    result = cf.tasks.map_cells(
        model=model_dir,
        out=tmp_path / "out",
        reference=reference,
        query=query,
        label="kind",
        features="expression",
        method="bbknn",
        compared_cells=100,
        progress=lambda *step: told.append(step),
    )
    assert result.method == "enhanced expression + BBKNN"
    assert [layout.name for layout in result.layouts] == ["PCA", "enhanced expression", result.method]
    assert [total for label, _, total in told if label == "expression"] == [100, 80]
    # The control is of the same features, over the compared cells.
    assert {total for label, _, total in told if "random weights" in label} == {100}
    assert "expression of random weights" in {label for label, _, _ in told}
    written = anndata.read_h5ad(tmp_path / "out" / "query.h5ad")
    assert (written.obs["transferred_label"].astype(str) == truth).mean() > 0.9
    assert written.obsm.keys() == {"X_cellfoundry", "X_cellfoundry_expression"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "first components of the model&#39;s expression; labels are carried by enhanced expression" in page
    # Axes are of the compared cells; the others are brought to them.
    both, model = anndata.concat([reference, query], index_unique="-"), open_model(model_dir)
    whole = represent(both, model, output="expression", target="t4.5")
    expected = principal_axes(whole[result.drawn], 50, seed=0).transform(whole)[reference.n_obs :]
    found = written.obsm["X_cellfoundry_expression"]
    assert np.allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_votes_and_their_shares() -> None:
    batch = np.array(["ref"] * 4 + ["query"] * 2)
    label = np.array(["a", "a", "b", "b", "a", ""])
    places = np.array([[0.0], [1.0], [10.0], [11.0], [0.5], [10.6]], dtype=np.float32)
    carried = carry(places, batch, label, ["query"], neighbors=2)
    assert carried.label.tolist() == ["", "", "", "", "a", "b"]
    assert carried.confidence[4:].tolist() == [1.0, 1.0]
    weights = sparse.csr_matrix(np.full((6, 6), 0.5) + np.eye(6)[::-1])
    graph = Graph(None, weights)  # type: ignore[arg-type]  # votes need no neighbours
    assert carry(graph, batch, label, ["query"], neighbors=2).label[5] == "a"
    found = score(carried, batch, label, ["query"], seed=0)
    assert found.batches == (("query", 1, 1.0, 1.0),)
    assert (found.over, found.accuracy.low) == ("cells", 1.0)
    assert right_by_confidence(carried, label)[0] == (0.0, 1.0, 1.0)


def test_macro_f1_is_over_labels_that_a_batch_has_or_was_given() -> None:
    batch = np.array(["x"] * 4 + ["y"])
    label = np.array(["a", "a", "b", "b", "c"])
    carried = Carried(np.array(["a", "a", "b", "c", ""]), np.ones(5))
    found = score(carried, batch, label, ["x"], seed=0)
    assert found.accuracy.mean == 0.75
    assert found.macro_f1.mean == pytest.approx((1 + 2 / 3 + 0) / 3)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("", {"batch": "lane"}, "no column 'lane'; there are: protocol, kind"),
        ("", {"label": "type"}, "no column 'type'; there are: protocol, kind"),
        ("one batch", {}, "holds only 'plate'; a mapping joins two batches or more"),
        ("lonely", {}, "label 'gamma' is only in the batch 'plate'.*--unlabelled 'gamma'"),
        ("few", {}, "it takes 100 or more"),
        ("", {"method": "mnn"}, "map: method.*"),
        ("", {"batch": None}, "give either one file of several batches"),
        ("", {"neighbours": 3}, "unknown setting 'neighbours'.*neighbors"),
    ],
)
def test_what_cannot_be_mapped(
    model_dir: Path, tmp_path: Path, change: str, options: dict[str, object], message: str
) -> None:
    cells = simulated(
        ("plate",) if change == "one batch" else ("plate", "split"), 20 if change == "few" else 90
    )
    if change == "lonely":
        cells.obs.loc["cell5", "kind"] = "gamma"
    settings = {"batch": "protocol", "label": "kind"} | options
    with pytest.raises(TaskError, match=message):
        cf.tasks.map_cells(model=model_dir, out=tmp_path / "out", data=cells, **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_no_shared_genes(model_dir: Path, tmp_path: Path) -> None:
    reference, query = simulated(("plate",))[:, :40].copy(), simulated(("droplet",))[:, 60:].copy()
    with pytest.raises(TaskError, match="share none of the model's genes"):
        cf.tasks.map_cells(
            model=model_dir, out=tmp_path / "out", reference=reference, query=query, label="kind"
        )
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named_with_where_to_get_it(model_dir: Path, tmp_path: Path) -> None:
    arguments = ["--model", model_dir, "--out", tmp_path / "out", "--label", "kind", "--batch", "protocol"]
    result = subprocess.run(
        [sys.executable, "-m", "cellfoundry", "task", "map", "--data", tmp_path / "mix.h5ad", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    for text in ("mix.h5ad: there is no such file", "GSE118767", "GSE96583"):
        assert text in result.stderr
    assert not (tmp_path / "out").exists()
