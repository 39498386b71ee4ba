"""``cf.tasks.scaling``: curves of real runs whose models say that they learned from different cells."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import pytest

import cellfoundry as cf
from cellfoundry.cli.main import run
from cellfoundry_bench.tasks.scaling_report import outlook
from cellfoundry_model.checkpoint import load_model, save_model
from cellfoundry_tasks.errors import TaskError
from cellfoundry_tasks.intervals import Interval
from cellfoundry_tasks.scaling.curves import Curve

COMMITTED = Path(__file__).resolve().parents[2] / "benchmarks/task_model/results/2026-11-29-amd-epyc"


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "result.json"
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


def shifted(found: dict[str, Any], row: str, by: float) -> None:
    (intervals,) = (each["intervals"] for each in found["rows"] if each["key"] == row)
    for score in intervals["macro_f1"].values():
        for key in ("mean", "low", "high"):
            score[key] += by


def learned_from(folder: Path, cells: int) -> None:
    change(folder, lambda found: found["model"].update(training_cells=cells))


@pytest.fixture(scope="module")
def annotated(few_cells: ad.AnnData, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of annotate with a model that learned from 400 cells."""
    folder = tmp_path_factory.mktemp("scaling")
    loaded = load_model(small_model)
    save_model(loaded.model, loaded.vocab_genes, folder / "model", {"training_cells": 400})
    cf.tasks.annotate(few_cells, folder / "model", folder / "run", label="cell_type", seeds=2, shots=(5,))
    return folder / "run"


@pytest.fixture
def two_runs(annotated: Path, tmp_path: Path) -> list[Path]:
    """The run of 400 cells and one of 100, whose expression probe is worse by 0.2, and which both saw 900 cells."""
    folders = [tmp_path / "more", tmp_path / "fewer"]
    for folder in folders:
        shutil.copytree(annotated, folder)
        change(folder, lambda found: found["model"].update(cells_seen=900))
    learned_from(folders[1], 100)
    change(folders[1], lambda found: shifted(found, "expression", -0.2))
    return folders


def test_two_doublings_that_bring_two_tenths_bring_one_tenth_each(
    two_runs: list[Path], tmp_path: Path
) -> None:
    (curve,) = cf.tasks.scaling(two_runs, tmp_path / "scaling")
    assert [run.training_cells for run in curve.runs] == [100, 400]
    first = next(each for each in curve.scores if each.score == "Macro-F1, 5 cells a class")
    assert first.curves[0].way == "model: expression, PCA-50"
    assert first.curves[0].per_doubling == pytest.approx(0.1)
    assert first.curves[1].per_doubling == pytest.approx(0.0)
    strongest = first.levels[first.strongest].mean
    assert strongest == max(level.mean for level in first.levels.values())
    assert first.curves[0].better_by == pytest.approx(first.curves[0].points[-1][1].mean - strongest)
    page = (tmp_path / "scaling/report.html").read_text()
    assert "400 cells" in page
    assert "+0.1000" in page
    numbers = json.loads((tmp_path / "scaling/result.json").read_text())
    assert numbers["curves"][0]["scores"][0]["curves"][0]["points"][0][0] == 100


def test_of_errors_lower_is_better_and_smoothing_has_its_best_k(tmp_path: Path) -> None:
    for name, cells in (("few", 100), ("many", 800)):
        shutil.copytree(COMMITTED / "enhance-baron", tmp_path / name)
        learned_from(tmp_path / name, cells)

    def better(found: dict[str, Any]) -> None:
        score = next(each for each in found["gene_level"] if each["method"] == "model")["scores"]["mae"]
        for key in ("mean", "low", "high"):
            score["over_cells"][key] -= 0.3

    change(tmp_path / "many", better)
    (curve,) = cf.tasks.scaling([tmp_path / "few", tmp_path / "many"])
    mae = curve.scores[0]
    assert mae.curves[0].per_doubling == pytest.approx(0.1)
    methods = json.loads((tmp_path / "few/result.json").read_text())["gene_level"]
    by_k = [
        each["scores"]["mae"]["mean"]
        for each in methods
        if each["method"].startswith("kNN smoothing, log of mean, k=")
        and each["depth"] == methods[0]["depth"]
    ]
    assert len(by_k) > 1
    assert mae.levels["kNN smoothing, log of mean"].mean == min(by_k)
    assert mae.strongest == "kNN smoothing, log of mean"
    # It knows nothing of a cell and is better here: shown, but not what a model has to beat.
    assert mae.others["one molecule of each gene"].mean < min(by_k)
    assert "random weights" in mae.others


@pytest.mark.parametrize(
    ("per_doubling", "better_by", "doublings", "said"),
    [
        (0.1, 0.01, 0.0, "ahead"),
        (0.1, -0.2, 2.0, "1,600 cells"),
        (0.1, -2.1, None, "out of reach"),
        (-0.1, -0.2, None, "out of reach"),
        (0.0, -1e-17, None, "out of reach"),
    ],
)
def test_the_gap_closes_after_as_many_doublings_as_bring_it(
    per_doubling: float, better_by: float, doublings: float | None, said: str
) -> None:
    curve = Curve(
        "model",
        ((100, Interval(0.0, None, None, 1)), (400, Interval(0.0, None, None, 1))),
        per_doubling,
        better_by,
    )
    assert curve.doublings_to_level == (None if doublings is None else pytest.approx(doublings))
    assert outlook(curve) == said


@pytest.mark.parametrize("folders", [[], "annotate-10"])
def test_a_list_of_results_is_needed(folders: Any, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="give a list of at least two folders"):
        cf.tasks.scaling(folders, tmp_path / "scaling")
    assert not (tmp_path / "scaling").exists()


def test_a_model_that_saw_fewer_cells_than_it_could_learned_from_those(two_runs: list[Path]) -> None:
    for folder in two_runs:
        change(folder, lambda found: found["model"].update(cells_seen=300))
    (curve,) = cf.tasks.scaling(two_runs)
    assert [run.training_cells for run in curve.runs] == [100, 300]


def test_a_gap_that_no_cells_close_is_called_so(two_runs: list[Path], tmp_path: Path) -> None:
    learned_from(two_runs[0], 100)
    learned_from(two_runs[1], 400)  # more cells are worse now
    cf.tasks.scaling(two_runs, tmp_path / "scaling")
    assert ">out of reach<" in (tmp_path / "scaling/report.html").read_text()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda found: found["model"].pop("training_cells"), "does not say how many cells it learned from"),
        (lambda found: found["config"].update(seeds=9), "seeds is 2, in .* 9; "),
        (lambda found: found["classes"].update(alpha=7), "labelled cells is"),
        (lambda found: found["model"].update(cells_seen=9_999), "models that trained for as long"),
        (lambda found: found["model"].update(encoder_tuned="lora"), "encoder was fine-tuned"),
        (lambda found: shifted(found, "counts", 0.1), "these are other cells or other versions of a library"),
        (lambda found: found["model"].update(training_cells=10**400), "is no result of task annotate"),
        (lambda found: found["model"].update(training_cells=True), "is no result of task annotate"),
        (
            lambda found: found["rows"][0]["intervals"]["macro_f1"]["5"].update(low=2.0),
            "is no result of task annotate",
        ),
        (lambda found: found["rows"][0]["intervals"]["macro_f1"].clear(), "has no score of the model"),
        (lambda found: found.update(rows=[]), "has no score of the model"),
        (lambda found: found["model"].update(parameters=5), "models of one shape"),
        (lambda found: found["model"].update(training_cells=400), "give one result for each number of cells"),
        (lambda found: found.update(source="other.h5ad"), "is the only result of annotate on"),
        (lambda found: found.update(task="map"), "is no result of task annotate or task enhance"),
        (lambda found: found["rows"][0].update(intervals=3), "is no result of task annotate or task enhance"),
    ],
)
def test_results_that_are_on_no_curve_are_refused(
    two_runs: list[Path], tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    change(two_runs[1], edit)
    with pytest.raises(TaskError, match=message):
        cf.tasks.scaling(two_runs, tmp_path / "scaling")
    assert not (tmp_path / "scaling").exists()


def test_the_command_refuses_to_replace_a_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], two_runs: list[Path], tmp_path: Path
) -> None:
    def command(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["cellfoundry", "task", "scaling", *map(str, arguments)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        monkeypatch.setattr("cellfoundry.cli.main.print_warnings_as_lines", lambda: None)
        with pytest.raises(SystemExit) as end:
            run()
        return int(end.value.code or 0)

    before = (two_runs[0] / "result.json").read_bytes()
    assert command(*two_runs, "--out", two_runs[0]) == 2
    assert "holds one of the results" in capsys.readouterr().err
    assert (two_runs[0] / "result.json").read_bytes() == before
    assert command(*two_runs, tmp_path / "missing", "--out", tmp_path / "scaling") == 2
    assert "there is no such file" in capsys.readouterr().err
    assert command(*two_runs, "--out", tmp_path / "scaling") == 0
    assert "annotate on" in capsys.readouterr().out
    assert (tmp_path / "scaling/report.html").is_file()
