"""Predictions of a model with a head: every format, every engine, and heads that do not belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from anndata import AnnData

import cellfoundry as cf
from cellfoundry_model.checkpoint import load_model, save_model
from cellfoundry_model.errors import ModelError
from cellfoundry_model.head import Head, HeadConfig
from cellfoundry_model.head_files import HEAD_HASH, head_files, head_hash
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.export import export_model
from cellfoundry_serving.predict import predict

NO_COUNTS = r"2 of 9 cells have no counts in the model's genes and get no prediction"
CLASSES = ("T/NK", "alpha", "beta")
COLUMNS = ["prediction", "probability_T|NK", "probability_alpha", "probability_beta"]


def with_head(model_dir: Path, out: Path, task: Any, classes: tuple[str, ...]) -> Path:
    """A copy of a model with a head of random weights."""
    loaded = load_model(model_dir)
    torch.manual_seed(1)
    head = Head(HeadConfig(task, "kind", classes, "all", "t4", 4 * loaded.config.encoder_width, 8))
    files = head_files(head)
    save_model(loaded.model, loaded.vocab_genes, out, {HEAD_HASH: head_hash(files)}, files)
    return out


@pytest.fixture(scope="module")
def typed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_head(model_dir, tmp_path_factory.mktemp("typed") / "model", "classification", CLASSES)


@pytest.fixture
def source(adata: AnnData, tmp_path: Path) -> Path:
    adata.uns["note"] = "kept"
    adata.write_h5ad(tmp_path / "source.h5ad")
    return tmp_path / "source.h5ad"


def predict_with_warning(*arguments: Any, **options: Any) -> Any:
    with pytest.warns(UserWarning, match=NO_COUNTS):
        return predict(*arguments, **options)


def test_every_format_holds_the_same(typed: Path, source: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "parquet", "h5ad"):
        summary = predict_with_warning(source, typed, tmp_path / f"out.{suffix}")
    assert (summary.cells, summary.empty_cells, summary.classes) == (9, 2, CLASSES)
    assert "9 cells, kind of 3 classes" in str(summary)
    csv, parquet = pd.read_csv(tmp_path / "out.csv"), pd.read_parquet(tmp_path / "out.parquet")
    after, before = ad.read_h5ad(tmp_path / "out.h5ad"), ad.read_h5ad(source)
    for table in (csv, parquet):
        assert list(table.columns) == ["cell", "cell_type", "depth", "obs_cell", *COLUMNS]
        assert table["cell"].tolist() == list(before.obs_names)
        assert table["cell_type"].tolist() == before.obs["cell_type"].tolist()
        np.testing.assert_allclose(table[COLUMNS[1:]], after.obs[COLUMNS[1:]], atol=1e-6)
        assert table["prediction"].astype(str).tolist() == after.obs["prediction"].astype(str).tolist()
    assert json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"cellfoundry"])["label"] == "kind"
    assert list(after.obs.columns) == [*before.obs.columns, *COLUMNS]
    assert after.uns["note"] == "kept"
    assert after.uns["cellfoundry_prediction"]["model_sha256"] == load_model(typed).info["weights_sha256"]
    assert (after.X != before.X).nnz == 0


def test_probabilities_are_a_distribution_and_empty_cells_have_none(typed: Path, adata: AnnData) -> None:
    with pytest.warns(UserWarning, match=NO_COUNTS):
        predicted = cf.load(typed).predict(adata)
    assert list(predicted.index) == list(adata.obs_names)
    assert predicted["prediction"].cat.categories.tolist() == list(CLASSES)
    has_counts = np.asarray(adata.X.sum(1)).ravel() > 0
    assert predicted["prediction"].notna().tolist() == has_counts.tolist()
    probability = predicted[COLUMNS[1:]].to_numpy()
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability[has_counts].sum(1), 1, atol=1e-5)
    assert np.isnan(probability[~has_counts]).all()
    named = np.array(CLASSES)[probability[has_counts].argmax(1)]
    assert predicted["prediction"][has_counts].tolist() == named.tolist()


def test_every_class_has_a_column_of_its_own(model_dir: Path, adata: AnnData, tmp_path: Path) -> None:
    classes = ("T/NK", "T|NK", "T|NK_2")
    model = with_head(model_dir, tmp_path / "model", "classification", classes)
    predict_with_warning(adata, model, tmp_path / "out.h5ad")
    obs = ad.read_h5ad(tmp_path / "out.h5ad").obs
    columns = ["probability_T|NK", "probability_T|NK_2", "probability_T|NK_2_2"]
    assert list(obs.columns)[-3:] == columns
    known = obs[obs["prediction"].notna()]
    np.testing.assert_allclose(known[columns].sum(axis=1), 1, atol=1e-5)
    called = np.array(classes)[known[columns].to_numpy().argmax(1)]
    assert known["prediction"].tolist() == called.tolist()


def test_again_in_place_replaces_the_earlier_prediction(typed: Path, source: Path) -> None:
    predict_with_warning(source, typed, source)
    first = ad.read_h5ad(source).obs
    predict_with_warning(source, typed, source)
    pd.testing.assert_frame_equal(ad.read_h5ad(source).obs, first)


def test_anndata_in_memory_is_left_as_it_was(typed: Path, adata: AnnData, tmp_path: Path) -> None:
    before = adata.copy()
    predict_with_warning(adata, typed, tmp_path / "out.h5ad")
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert set(COLUMNS) <= set(ad.read_h5ad(tmp_path / "out.h5ad").obs)


def test_a_number_is_predicted_in_its_own_unit(model_dir: Path, adata: AnnData, tmp_path: Path) -> None:
    model = with_head(model_dir, tmp_path / "model", "regression", ())
    summary = predict_with_warning(adata, model, tmp_path / "out.csv")
    assert "kind, a number" in str(summary)
    table = pd.read_csv(tmp_path / "out.csv")
    assert list(table.columns)[-2:] == ["obs_cell", "prediction"]
    assert table["prediction"].notna().sum() == 7


def test_an_export_predicts_as_its_model_does(typed: Path, adata: AnnData, tmp_path: Path) -> None:
    export_model(typed, tmp_path / "onnx", "onnx")
    with pytest.warns(UserWarning, match=NO_COUNTS):
        by_torch, by_onnx = (cf.load(folder).predict(adata) for folder in (typed, tmp_path / "onnx"))
    np.testing.assert_allclose(by_torch[COLUMNS[1:]], by_onnx[COLUMNS[1:]], atol=1e-4)
    with pytest.raises(ServingError, match="the onnx engine has no weights to train"):
        cf.load(tmp_path / "onnx").encoder()


def test_what_cannot_be_written_is_refused_before_any_work(typed: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for out, words in (
        ("out.npy", "unknown output format; use one of .csv, .parquet, .h5ad"),
        ("no/out.csv", "folder of .* does not exist"),
        ("folder.csv", "is a folder"),
    ):
        with pytest.raises(ServingError, match=words):
            predict(source, typed, tmp_path / out)


def test_heads_that_are_missing_damaged_or_anothers_are_refused(
    model_dir: Path, typed: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(ModelError, match=r"the model has no head.* `cellfoundry train finetune`"):
        predict(source, model_dir, out)
    other = with_head(model_dir, tmp_path / "other", "classification", ("one", "two"))
    (other / "head.json").write_bytes((typed / "head.json").read_bytes())
    with pytest.raises(ModelError, match="are not those that were saved with this model"):
        predict(source, other, out)
    (other / "head.safetensors").unlink()
    with pytest.raises(ModelError, match=r"head.safetensors is missing"):
        predict(source, other, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ["one"]}, "classes cannot be"),
        ({"classes": ["one", "one"]}, "classes cannot be"),
        ({"classes": "alpha"}, "classes cannot be 'alpha'"),
        ({"task": "translation"}, "task cannot be 'translation'"),
        ({"width": -1}, "width cannot be -1"),
        ({"width": 4}, "not the weights of head.json"),
        ({"extra": 1}, "its fields are"),
        ({"format": "other"}, "not a CellFoundry head's config"),
        ({"format_version": 99}, "only format version 1 is read"),
    ],
    ids=str,
)
def test_a_head_that_says_what_cannot_be_is_refused(
    model_dir: Path, source: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    loaded = load_model(model_dir)
    files = head_files(
        Head(HeadConfig("classification", "kind", CLASSES, "all", "t4", 4 * loaded.config.encoder_width, 0))
    )
    files["head.json"] = json.dumps(json.loads(files["head.json"]) | change).encode()
    out = tmp_path / "model"
    save_model(loaded.model, loaded.vocab_genes, out, {HEAD_HASH: head_hash(files)}, files)
    with pytest.raises(ModelError, match=words):
        predict(source, out, tmp_path / "out.csv")
