"""The page shows every result, needs nothing from outside, and escapes what it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cellfoundry_bench.errors import BenchError
from cellfoundry_bench.figures import line_chart, ratio_chart
from cellfoundry_bench.report import write_report
from cellfoundry_bench.results import Curve, Row

ROWS = [
    Row("read <cells>", 87_000.0, "cells/s", "backed h5ad & co", 8_000.0, 10.9, (9.0, 12.0), 2.0).to_dict(),
    Row("slower", 1.0, "s", "peer", 0.5, 0.5).to_dict(),
    Row("on CUDA", None, "TFLOP/s", "padded", bar=1.5, note="no GPU").to_dict(),
]


def record(name: str) -> dict[str, Any]:
    machine = {"cpu": "cpu", "cores": 2, "memory_gib": 4.0, "gpu": None, "gpu_driver": None}
    curve = {"title": "t", "x_label": "x", "y_label": "y", "lines": {"ours": [[300, 1.0], [5000, 2.0]]}}
    return {
        "name": name,
        "summary": "a suite",
        "command": f"cellfoundry bench run {name}",
        "date": "2026-01-01T00:00:00+00:00",
        "commit": None,
        "versions": {"torch": "2"},
        "machine": machine,
        "wall_s": 1.0,
        "busy_cores_before_and_after": [0.0, None],
        "rows": ROWS,
        "curves": [curve],
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for day in ("2026-01-01-cpu", "2026-01-02-cpu"):
        (folder / day).mkdir(parents=True)
        (folder / day / "data.json").write_text(json.dumps(record("data")))
    return folder


def test_page_shows_every_folder_newest_first_and_needs_nothing_from_outside(
    results: Path, tmp_path: Path
) -> None:
    page = write_report(results, tmp_path / "new" / "report.html").read_text()
    assert page.index("2026-01-02-cpu") < page.index("2026-01-01-cpu")
    assert "87,000" in page
    assert re.search(r"before and after:\s+0.0, unknown", page)
    assert "not measured" in page
    assert "no GPU" in page
    assert not re.search(r'(?:src|href)="(?!#)|@import|url\((?!#)', page)
    assert "prefers-color-scheme: dark" in page
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["report.html"]


def test_names_are_escaped(results: Path, tmp_path: Path) -> None:
    page = write_report(results, tmp_path / "report.html").read_text()
    assert "read &lt;cells&gt;" in page
    assert "<cells>" not in page
    assert "&amp;lt;" not in page


def test_charts_follow_the_theme_and_leave_out_rows_without_ratio() -> None:
    for chart in (line_chart(record("data")["curves"][0]), ratio_chart(ROWS)):
        texts = [text.text for text in ElementTree.fromstring(chart).iter("{http://www.w3.org/2000/svg}text")]
        assert texts
        assert "currentColor" in chart
    assert {"10.90x", "0.50x", "slower"} <= set(texts)
    assert "on CUDA" not in texts
    assert ratio_chart([ROWS[2]]) == ""
    empty = Curve("t", "x", "y", {})
    assert line_chart({"title": empty.title, "x_label": "x", "y_label": "y", "lines": {}}) == ""


def test_missing_empty_and_foreign_folders_are_refused_in_one_sentence(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with pytest.raises(BenchError, match="is not a folder"):
        write_report(tmp_path / "nowhere", out)
    with pytest.raises(BenchError, match="holds no result; run `cellfoundry bench run"):
        write_report(tmp_path, out)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(BenchError, match="is not a readable JSON file"):
        write_report(tmp_path, out)
    (tmp_path / "x.json").write_text('{"name": "x"}')
    with pytest.raises(BenchError, match="is not a benchmark result: it lacks summary"):
        write_report(tmp_path, out)
    assert not out.exists()


def test_ticks_tell_shares_and_lengths_apart() -> None:
    lines = {"ours": [(0.02, 1.0), (0.25, 1.0), (19_266, 2.0)]}
    chart = line_chart({"title": "t", "x_label": "x", "y_label": "y", "lines": lines})
    assert all(f">{tick}<" in chart for tick in ("0.02", "0.25", "19,266"))
