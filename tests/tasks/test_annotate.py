"""Few-shot annotation as a user meets it: rows on the same splits, a report, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import cellfoundry as cf
from cellfoundry_model.checkpoint import load_model, save_model
from cellfoundry_tasks.annotate import tuning
from cellfoundry_tasks.annotate.config import Tune, build_config
from cellfoundry_tasks.annotate.labelled import read_labelled
from cellfoundry_tasks.annotate.result import Evaluation
from cellfoundry_tasks.annotate.splits import few_shot
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.representation import open_model, represent

LABEL = "cell_type"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("annotate") / "report"


@pytest.fixture(scope="module")
def result(few_cells: ad.AnnData, small_model: Path, out: Path) -> Evaluation:
    return cf.tasks.annotate(few_cells, small_model, out, label=LABEL, shots=(3, "all"), seeds=2)


def test_every_row_stands_beside_the_model_on_the_same_splits(result: Evaluation) -> None:
    keys = [row.key for row in result.rows]
    model = ["expression", "embedding", "both", "with_counts"]
    baselines = ["counts", "counts_inductive", "celltypist"]
    assert keys == [*model, *baselines, *(f"random_{key}" for key in model), "commonest"]
    for row in result.rows:
        assert set(row.macro_f1) == set(row.accuracy) == {"3", "all"}
        assert all(len(scores) == 2 for scores in row.macro_f1.values())
    assert result.row("commonest").interval("accuracy", "all").mean == pytest.approx(0.25)
    assert result.row("counts").interval("macro_f1", "3").mean > 0.8  # real cells of four plain types
    assert result.row("celltypist").interval("macro_f1", "all").mean > 0.8


def test_the_report_is_whole_and_needs_nothing_from_outside(result: Evaluation, out: Path) -> None:
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3
    assert all(row.name in page for row in result.rows)
    for said in (
        "Zheng68K",
        "95 % interval",
        "C = 10",
        "a test",
        "learned nothing",
        "Macro-F1 above counts: PCA-50",
    ):
        assert said in page
    assert not any(fetch in page for fetch in ("<script", "<link", "<img", "url(http", "@import"))
    record = json.loads((out / "result.json").read_text())
    assert record["detail"]["shot"] == "3"
    assert record["config"]["seeds"] == 2
    mean, low, high = record["rows"][0]["above_counts"]["3"]
    assert low <= mean <= high
    assert f"{100 * mean:+.1f}\n({100 * low:+.1f} to {100 * high:+.1f})" in page
    told = record["rows"][0]["intervals"]["macro_f1"]["3"]
    assert told["low"] < told["mean"] < told["high"]
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "result.json"]


def test_a_run_is_repeatable(few_cells: ad.AnnData, small_model: Path, result: Evaluation) -> None:
    again = cf.tasks.annotate(few_cells, small_model, label=LABEL, shots=(3,), seeds=1)
    for row in again.rows:
        assert row.macro_f1["3"] == pytest.approx(result.row(row.key).macro_f1["3"][:1])


def test_fine_tunings_learn_on_the_probes_splits(
    few_cells: ad.AnnData, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "STEPS", 150)  # a quarter, and enough for cells this easy
    tuned = ("head", "last", "lora")
    found = cf.tasks.annotate(
        few_cells, small_model, tmp_path, label=LABEL, shots=("all",), seeds=1, tune=tuned, last=1
    )
    assert "then learns anew from all of them" in (tmp_path / "report.html").read_text()
    for tune in tuned:
        row = found.row(f"tune_{tune}")
        assert row.kind == "tuned"
        assert row.accuracy["all"][0] > 0.4  # of four classes; the vectors are of random weights


@pytest.mark.parametrize("tune", ["head", "last"])
def test_fine_tunings_end_with_all_training_cells(
    few_cells: ad.AnnData, small_model: Path, tune: Tune
) -> None:
    """After some of them, held back, have said for how many epochs."""
    config = build_config({"label": LABEL, "tune": (tune,), "last": 1})
    labelled, embedder = read_labelled(few_cells, config), open_model(small_model, device="cpu")
    split = few_shot(labelled, config, 5, 0)
    told: list[tuple[str, int, int]] = []
    both = tuning.Tuning(embedder, labelled, represent(labelled.cells, embedder), config)
    both.classes(tune, split, 0, progress=lambda *step: told.append(step))
    (_, before, _), (_, done, total) = told[-2:]
    assert told[0][1] == tuning.BATCH_CELLS  # 4 a class, in one step
    assert done - before == len(split.train) - tuning.BATCH_CELLS  # 5 a class, in two
    assert done == total


def test_few_shot_cells_are_of_each_class_and_never_test(few_cells: ad.AnnData) -> None:
    config = build_config({"label": LABEL})
    labelled = read_labelled(few_cells, config)
    five, ten, all_ = (few_shot(labelled, config, shot, 3) for shot in (5, 10, "all"))
    assert np.bincount(labelled.class_C[five.train]).tolist() == [5] * 4
    assert np.bincount(labelled.class_C[five.test]).tolist() == [12] * 4
    assert set(five.train) < set(ten.train) < set(all_.train)
    assert set(five.test) == set(all_.test)
    assert not set(all_.train) & set(all_.test)
    assert len(all_.train) + len(all_.test) == len(labelled.class_C)
    other = few_shot(labelled, config, 5, 4)
    assert set(other.test) != set(five.test)


def test_a_column_names_the_test_cells(few_cells: ad.AnnData) -> None:
    cells = few_cells.copy()
    cells.obs["heldout"] = np.arange(cells.n_obs) % 4 == 0
    config = build_config({"label": LABEL, "heldout_column": "heldout"})
    labelled = read_labelled(cells, config)
    for seed in range(2):
        split = few_shot(labelled, config, 5, seed)
        assert split.test.tolist() == np.flatnonzero(cells.obs["heldout"]).tolist()
        assert not cells.obs["heldout"].to_numpy()[split.train].any()


def test_where_a_column_names_the_test_cells_all_others_are_one_draw(
    few_cells: ad.AnnData, small_model: Path
) -> None:
    cells = few_cells.copy()
    cells.obs["heldout"] = np.arange(cells.n_obs) % 4 == 0
    found = cf.tasks.annotate(
        cells, small_model, label=LABEL, heldout_column="heldout", shots=(3, "all"), seeds=2
    )
    for row in found.rows:
        assert [len(row.macro_f1[shot]) for shot in ("3", "all")] == [2, 1]
    assert found.row("counts").interval("macro_f1", "all").high is None


def test_of_official_weights_without_expression_only_the_embedding_is_judged(
    few_cells: ad.AnnData, small_model: Path, tmp_path: Path
) -> None:
    part = tmp_path / "cell"
    loaded = load_model(small_model)
    save_model(loaded.model, loaded.vocab_genes, part, {"part": "cell"})
    found = cf.tasks.annotate(few_cells, part, tmp_path / "out", label=LABEL, shots=(3,), seeds=1)
    assert [row.key for row in found.rows if row.kind == "model"] == ["embedding", "embedding_with_counts"]
    assert "model: embedding" in str(found)
    with pytest.raises(TaskError, match="part 'cell' of official weights, whose decoder was not trained"):
        cf.tasks.annotate_query(few_cells, few_cells, part, label=LABEL, features="expression")


def test_a_finetuned_encoder_leaves_no_expression_and_the_report_says_why(
    few_cells: ad.AnnData, finetuned_model: Path, tmp_path: Path
) -> None:
    found = cf.tasks.annotate(few_cells, finetuned_model, tmp_path / "out", label=LABEL, shots=(3,), seeds=1)
    keys = [row.key for row in found.rows if row.kind in ("model", "random")]
    judged = ["embedding", "embedding_with_counts"]
    assert keys == [*judged, *(f"random_{key}" for key in judged)]
    why = "the model's expression: the model has a fine-tuned encoder (tune last), which its decoder no longer fits"
    assert found.left_out == (why,)
    assert why.replace("'", "&#39;") in (tmp_path / "out" / "report.html").read_text()
    for features in ("expression", "both"):
        with pytest.raises(TaskError, match=rf"--features {features}: the model has a fine-tuned encoder"):
            cf.tasks.annotate_query(few_cells, few_cells, finetuned_model, label=LABEL, features=features)


def test_small_classes_and_unlabelled_cells_are_left_out_and_told_of(few_cells: ad.AnnData) -> None:
    cells = few_cells.copy()
    names = cells.obs[LABEL].astype(str).to_numpy()
    names[np.flatnonzero(names == "alpha")[:31]] = "unassigned"
    cells.obs[LABEL] = names
    labelled = read_labelled(cells, build_config({"label": LABEL, "unlabelled": ["unassigned"]}))
    assert labelled.classes == ("acinar", "beta", "ductal")
    assert labelled.left_out == ("31 cells without a label", "class 'alpha': 9 cells, fewer than 10")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "celltype"}, "has no column 'celltype'; there are: cell_type"),
        ({"label": "one"}, "only 'same' has as many"),
        ({"label": "none"}, "none has as many"),
        ({"label": LABEL, "heldout_column": LABEL}, "holds other values than true and false"),
        ({"label": LABEL, "shots": (0,)}, "annotate: shots"),
        ({"label": LABEL, "shots": (1,)}, "annotate: shots"),
        ({"label": LABEL, "shots": (5, 5)}, "annotate: shots: each may stand there once"),
        ({"label": LABEL, "shot": 5}, "annotate: shot: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_learnt_is_told_in_a_sentence_and_leaves_nothing(
    few_cells: ad.AnnData, small_model: Path, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    cells = few_cells.copy()
    cells.obs["one"], cells.obs["none"] = "same", None
    with pytest.raises(TaskError, match=r"annotat|column") as error:
        cf.tasks.annotate(cells, small_model, tmp_path / "out", **settings)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_file_at_the_reports_place_is_told_of_before_any_work(
    few_cells: ad.AnnData, small_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(TaskError, match="is a file; give a folder"):
        cf.tasks.annotate(few_cells, small_model, tmp_path / "out", label=LABEL)
    assert (tmp_path / "out").read_text() == "mine"
