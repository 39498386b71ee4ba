"""Obs as people have it, embedded and predicted: taken names, missing text, repeated columns, backed files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from anndata import AnnData

from cellfoundry_model.checkpoint import load_model
from cellfoundry_serving.embed import embed
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.parts.genes import chosen_genes
from cellfoundry_serving.predict import predict

from .test_predict import CLASSES, with_head

pytestmark = pytest.mark.filterwarnings("ignore:2 of 9 cells have no counts")


@pytest.fixture(scope="module")
def typed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_head(model_dir, tmp_path_factory.mktemp("typed") / "model", "classification", CLASSES)


@pytest.fixture
def source(adata: AnnData, tmp_path: Path) -> Path:
    adata.write_h5ad(tmp_path / "source.h5ad")
    return tmp_path / "source.h5ad"


@pytest.mark.parametrize("form", [str, Path.as_uri, lambda path: [str(path)]], ids=["path", "URL", "list"])
def test_predictions_in_place_keep_the_counts(
    typed: Path, source: Path, adata: AnnData, form: Callable[[Path], Any]
) -> None:
    predict(form(source), typed, source)
    after = ad.read_h5ad(source)
    assert (after.X != adata.X).nnz == 0
    assert "prediction" in after.obs


def test_a_second_models_predictions_replace_those_of_the_first(
    typed: Path, model_dir: Path, source: Path, tmp_path: Path
) -> None:
    before = list(ad.read_h5ad(source).obs)
    number = with_head(model_dir, tmp_path / "number", "regression", ())
    predict(source, typed, source)
    assert "probability_alpha" in ad.read_h5ad(source).obs
    predict(source, number, source)
    assert list(ad.read_h5ad(source).obs) == [*before, "prediction"]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
def test_columns_with_taken_names_get_free_ones(
    typed: Path, model_dir: Path, adata: AnnData, tmp_path: Path, suffix: str
) -> None:
    adata.obs["cell"], adata.obs["obs_cell"] = 1, 2
    adata.obs["decade"] = pd.cut(np.arange(adata.n_obs), 3)
    out = tmp_path / f"out.{suffix}"
    if suffix == "csv":
        predict(adata, typed, out)
        written = pd.read_csv(out)
    else:
        embed(adata, model_dir, out)
        written = pq.read_table(out).to_pandas() if suffix == "parquet" else pd.read_feather(out)
    assert written["cell"].tolist() == adata.obs_names.tolist()
    assert written["obs_cell"].tolist() == [2] * adata.n_obs
    assert written["obs_obs_cell"].tolist() == [1] * adata.n_obs
    assert written["decade"].tolist() == [str(interval) for interval in adata.obs["decade"]]


def test_missing_text_is_missing_in_the_h5ad_and_the_callers_obs_stays(
    model_dir: Path, adata: AnnData, tmp_path: Path
) -> None:
    adata.obs["note"] = np.array(["a", None] * adata.n_obs, dtype=object)[: adata.n_obs]
    adata.obs["nothing"] = np.array([None] * adata.n_obs, dtype=object)
    before = adata.obs.copy()
    embed(adata, model_dir, tmp_path / "out.h5ad")
    written = ad.read_h5ad(tmp_path / "out.h5ad")
    for column in ("note", "nothing"):
        assert written.obs[column].isna().tolist() == before[column].isna().tolist()
    assert (written.X != adata.X).nnz == 0
    assert "X_cellfoundry" in written.obsm
    pd.testing.assert_frame_equal(adata.obs, before)


def test_predictions_stand_beside_missing_text(typed: Path, adata: AnnData, tmp_path: Path) -> None:
    adata.obs["note"] = pd.array(["a", None] * adata.n_obs, dtype="string")[: adata.n_obs]
    predict(adata, typed, tmp_path / "out.h5ad")
    obs = ad.read_h5ad(tmp_path / "out.h5ad").obs
    assert obs["note"].isna().tolist() == adata.obs["note"].isna().tolist()
    assert obs["prediction"].notna().sum() == 7  # two cells have no counts
    embed(adata, typed, tmp_path / "embedded.h5ad")
    assert (
        ad.read_h5ad(tmp_path / "embedded.h5ad").obs["note"].isna().tolist()
        == adata.obs["note"].isna().tolist()
    )


@pytest.mark.parametrize("write", [embed, predict])
def test_an_obs_that_no_h5ad_takes_is_told_of_before_the_work(
    write: Callable[..., Any], typed: Path, adata: AnnData, tmp_path: Path
) -> None:
    adata.obs["mixed"] = np.array([1, "two"] * adata.n_obs, dtype=object)[: adata.n_obs]
    seen: list[int] = []
    with pytest.raises(ServingError, match=r"obs column 'mixed' cannot be written to an \.h5ad"):
        write(adata, typed, tmp_path / "out.h5ad", progress=lambda _, done, __: seen.append(done))
    assert not seen
    assert not list(tmp_path.iterdir())


def test_means_by_a_column_that_is_there_twice_are_refused(
    model_dir: Path, adata: AnnData, tmp_path: Path
) -> None:
    adata.obs = pd.concat([adata.obs[[]].assign(kind="a"), adata.obs[[]].assign(kind="b")], axis=1)
    with pytest.raises(ServingError, match="--mean-by kind: obs of the source has 2 columns of that name"):
        embed(adata, model_dir, tmp_path / "out.npy", mean_by="kind")


def test_a_backed_anndata_keeps_its_file(
    typed: Path, model_dir: Path, source: Path, adata: AnnData, tmp_path: Path
) -> None:
    backed = ad.read_h5ad(source, backed="r")
    embed(backed, model_dir, tmp_path / "out.h5ad")
    predict(backed, typed, tmp_path / "predicted.h5ad")
    assert Path(backed.filename) == source
    backed.file.close()
    assert (backed.to_memory().X != adata.X).nnz == 0
    assert (ad.read_h5ad(tmp_path / "out.h5ad").X != adata.X).nnz == 0


def test_an_index_that_is_called_like_a_prediction(typed: Path, adata: AnnData, tmp_path: Path) -> None:
    adata.obs.index.name = "prediction"
    adata.write_h5ad(tmp_path / "source.h5ad")
    predict(tmp_path / "source.h5ad", typed, tmp_path / "out.h5ad")
    assert ad.read_h5ad(tmp_path / "out.h5ad").obs["prediction"].dtype == "category"


def test_genes_may_be_many_and_their_file_may_begin_with_a_mark(model_dir: Path, tmp_path: Path) -> None:
    genes = load_model(model_dir).vocab_genes
    assert chosen_genes(",".join(genes), genes) == tuple(range(len(genes)))
    (tmp_path / "genes.txt").write_text("\n".join(genes[:3]), encoding="utf-8-sig")
    assert chosen_genes(tmp_path / "genes.txt", genes) == (0, 1, 2)
