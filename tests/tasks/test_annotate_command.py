"""``cellfoundry task annotate`` from the command line: exit codes, and nothing left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import pytest

from cellfoundry.cli.main import run


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["cellfoundry", "task", "annotate", *map(str, arguments)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("cellfoundry.cli.main.print_warnings_as_lines", lambda: None)
    with pytest.raises(SystemExit) as end:
        run()
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def labelled(few_cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "labelled.h5ad"
    few_cells.write_h5ad(path)
    return path


def test_it_labels_a_query_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    labelled: Path,
    small_model: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    arguments = ("--data", labelled, "--label", "cell_type", "--model", small_model, "--out", out)
    assert command(monkeypatch, *arguments, "--query", labelled, "--features", "embedding") == 0
    assert "160 cells" in capsys.readouterr().out
    assert "cellfoundry_label" in ad.read_h5ad(out / "labelled.h5ad").obs
    assert "--features embedding" in (out / "report.html").read_text()


def test_reference_and_query_may_be_urls(
    monkeypatch: pytest.MonkeyPatch, labelled: Path, small_model: Path, tmp_path: Path
) -> None:
    out, url = tmp_path / "out", labelled.as_uri()
    arguments = ("--data", url, "--label", "cell_type", "--model", small_model, "--out", out)
    assert command(monkeypatch, *arguments, "--query", url, "--features", "embedding") == 0
    assert "cellfoundry_label" in ad.read_h5ad(out / "labelled.h5ad").obs


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--data": "missing.h5ad"}, "missing.h5ad: there is no such file; public cells with types: Baron"),
        ({"--model": "no_model"}, "no_model"),
        ({"--label": "kind"}, "there are: cell_type"),
        ({"--unlabelled": "none"}, "there are: acinar, alpha, beta, ductal"),
        ({"--tune": "most"}, "annotate: tune"),
        ({"--shots": "5,few"}, "annotate: shots"),
        ({"--tune": "last", "--last": "9"}, "the encoder has 2 layers"),
        ({"--heldout-column": "cell_type"}, "true and false"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    labelled: Path,
    small_model: Path,
    tmp_path: Path,
    changed: dict[str, str],
    message: str,
) -> None:
    given = {"--data": labelled, "--label": "cell_type", "--model": small_model, "--out": tmp_path / "out"}
    arguments = [part for pair in (given | changed).items() for part in pair]
    assert command(monkeypatch, *arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert message in told
    assert not (tmp_path / "out").exists()
