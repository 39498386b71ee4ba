"""Labels for new cells as a user meets them: columns, confidence, unknown cells, files."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import cellfoundry as cf
from cellfoundry_model.checkpoint import load_model
from cellfoundry_serving.errors import ServingError
from cellfoundry_tasks.annotate.calibration import probabilities, reliability, temperature
from cellfoundry_tasks.annotate.novelty import Distance, Limits
from cellfoundry_tasks.annotate.query import QueryResult
from cellfoundry_tasks.errors import TaskError

LABEL = "cell_type"
COLUMNS = ["cellfoundry_label", "cellfoundry_likeliest", "cellfoundry_confidence", "cellfoundry_unknown"]


@pytest.fixture(scope="module")
def reference(few_cells: ad.AnnData) -> ad.AnnData:
    return few_cells[np.arange(few_cells.n_obs) % 4 != 0].copy()


@pytest.fixture(scope="module")
def query(few_cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells = few_cells[np.arange(few_cells.n_obs) % 4 == 0].copy()
    cells.obs["batch"] = "new"
    cells.layers["halved"] = cells.X * 0.5
    cells.uns["note"] = "kept"
    path = tmp_path_factory.mktemp("query") / "new.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("annotated") / "out"


@pytest.fixture(scope="module")
def result(reference: ad.AnnData, query: Path, small_model: Path, out: Path) -> QueryResult:
    return cf.tasks.annotate_query(query, reference, small_model, out, label=LABEL, seeds=2)


def test_a_copy_of_the_query_has_labels_and_all_that_it_had(
    result: QueryResult, query: Path, out: Path
) -> None:
    before, after = ad.read_h5ad(query), ad.read_h5ad(out / "new.h5ad")
    assert list(after.obs.columns) == [*before.obs.columns, *COLUMNS]
    assert after.obs[list(before.obs.columns)].equals(before.obs)
    assert (after.X != before.X).nnz == 0
    assert (after.layers["halved"] != before.layers["halved"]).nnz == 0
    assert after.uns["note"] == "kept"
    obs = after.obs
    assert obs["cellfoundry_unknown"].dtype == bool
    assert obs["cellfoundry_confidence"].between(0.25, 1.0).all()
    called_unknown = obs["cellfoundry_label"] == "unknown"
    assert (called_unknown == obs["cellfoundry_unknown"]).all()
    known = obs[~called_unknown]
    assert (known["cellfoundry_label"].astype(str) == known["cellfoundry_likeliest"].astype(str)).all()
    assert (obs["cellfoundry_likeliest"].astype(str) == obs[LABEL].astype(str)).mean() > 0.6
    assert sorted(path.name for path in out.iterdir()) == ["new.h5ad", "report.html", "result.json"]


def test_the_reference_is_never_overwritten(
    reference: ad.AnnData, query: Path, small_model: Path, tmp_path: Path
) -> None:
    own = tmp_path / "new.h5ad"
    reference.write_h5ad(own)
    before = own.read_bytes()
    with pytest.raises(ServingError, match="is the source itself and would be overwritten"):
        cf.tasks.annotate_query(query, own, small_model, tmp_path, label=LABEL)
    assert own.read_bytes() == before
    assert list(tmp_path.iterdir()) == [own]


def test_the_report_says_what_the_labels_are_worth(result: QueryResult, out: Path) -> None:
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2
    for said in (
        "Cells of a class that the reference lacks",
        "Temperature scaling",
        result.features,
        "Zheng68K",
    ):
        assert said in page
    record = json.loads((out / "result.json").read_text())
    assert set(record["few_shot"]) == {"expression", "embedding", "both"}
    assert record["features"] == max(record["few_shot"], key=record["few_shot"].get)
    assert sum(record["cells"].values()) == 40
    left_out = result.judgement.left_out
    assert [each.name for each in left_out] == ["acinar", "alpha", "beta", "ductal"]
    assert all(0 <= each.lost < 0.5 for each in left_out)


def test_an_anndata_gets_the_same_labels_in_place(
    result: QueryResult, reference: ad.AnnData, query: Path, small_model: Path
) -> None:
    cells = ad.read_h5ad(query)
    cf.tasks.annotate_query(cells, reference, small_model, label=LABEL, seeds=2, features=result.features)
    assert list(cells.obs.columns[-4:]) == COLUMNS
    assert cells.obs["cellfoundry_label"].tolist() == result.columns["cellfoundry_label"].tolist()
    assert cells.obs["cellfoundry_confidence"].to_numpy() == pytest.approx(
        result.columns["cellfoundry_confidence"].to_numpy(), abs=1e-4
    )


def test_a_query_without_gene_names_has_those_of_the_model(
    reference: ad.AnnData, query: Path, small_model: Path, tmp_path: Path
) -> None:
    genes = list(load_model(small_model).vocab_genes)
    np.save(tmp_path / "new.npy", ad.read_h5ad(query)[:, genes].X.toarray())
    shared = {"label": LABEL, "features": "embedding", "seeds": 1}
    named = cf.tasks.annotate_query(query, reference[:, genes].copy(), small_model, **shared)
    found = cf.tasks.annotate_query(
        tmp_path / "new.npy", reference[:, genes].copy(), small_model, tmp_path / "out", **shared
    )
    assert found.columns["cellfoundry_confidence"].to_numpy() == pytest.approx(
        named.columns["cellfoundry_confidence"].to_numpy(), abs=1e-4
    )
    written = ad.read_h5ad(tmp_path / "out" / "new.h5ad").obs
    assert written["cellfoundry_label"].tolist() == named.columns["cellfoundry_label"].tolist()


def test_what_is_wrong_is_told_and_leaves_nothing(
    reference: ad.AnnData, query: Path, small_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ServingError, match=r"is the source itself"):
        cf.tasks.annotate_query(query, reference, small_model, query.parent, label=LABEL)
    cells = ad.read_h5ad(query)
    cells.X.data[: cells.X.indptr[1]] = 0
    with pytest.raises(TaskError, match=r"1 cells have no counts"):
        cf.tasks.annotate_query(cells, reference, small_model, tmp_path / "out", label=LABEL)
    assert "cellfoundry_label" not in cells.obs
    assert not (tmp_path / "out").exists()


def test_temperature_makes_confidence_what_it_says() -> None:
    rng = np.random.default_rng(0)
    score_CK = rng.normal(size=(4000, 3)) * 2
    class_C = np.array([rng.choice(3, p=row) for row in probabilities(score_CK, 1.0)])
    overconfident = score_CK * 4
    found = temperature(overconfident, class_C)
    assert found == pytest.approx(4.0, rel=0.1)
    before = reliability(probabilities(overconfident, 1.0), class_C).expected_error
    after = reliability(probabilities(overconfident, found), class_C)
    assert before > 0.1
    assert after.expected_error < 0.03
    assert sum(after.cells) == 4000


def test_limits_keep_what_they_should_and_far_cells_are_unknown_however_confident() -> None:
    rng = np.random.default_rng(0)
    class_C = np.arange(1000) % 2
    feature_CK = rng.normal(size=(1000, 4)).astype(np.float32) + 6 * class_C[:, None].astype(np.float32)
    distance_C = Distance(feature_CK, class_C).of(feature_CK)
    confidence_C = rng.uniform(0.5, 1.0, 1000)
    limits = Limits.of(confidence_C, distance_C, 0.95)
    assert (~limits.unknown(confidence_C, distance_C)).mean() == pytest.approx(0.95, abs=0.005)
    far = Distance(feature_CK, class_C).of(np.full((1, 4), 30, dtype=np.float32))
    assert limits.unknown(np.array([1.0]), far).all()
    assert limits.unknown(np.array([0.4]), distance_C[:1]).all()
