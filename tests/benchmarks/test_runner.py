"""Running suites: one whole file each with what a reader needs to judge it, and clear refusals."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cellfoundry_bench import machine, registry
from cellfoundry_bench.errors import BenchError
from cellfoundry_bench.registry import Suite, list_suites
from cellfoundry_bench.results import Curve, Row, SuiteResult
from cellfoundry_bench.runner import default_folder, run


def demo_suite() -> SuiteResult:
    rows = [Row("one", 1.0, "s"), Row("two", None, "s", note="no GPU here")]
    return SuiteResult(rows, [Curve("title", "x", "y", {"ours": [(1.0, 2.0), (2.0, 3.0)]})])


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that takes no time beside the shipped ones."""
    monkeypatch.setattr(registry, "SUITES", (*registry.SUITES, Suite("demo", "a demonstration")))
    module = SimpleNamespace(run=demo_suite)
    monkeypatch.setitem(sys.modules, "cellfoundry_bench.suites.demo", module)


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cellfoundry_bench.registry import list_suites; list_suites(); "
        "print(sorted({'torch', 'ray', 'numpy', 'matplotlib', 'anndata'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_suite_has_a_name_and_one_line() -> None:
    assert [suite.name for suite in list_suites()] == [
        "data",
        "ingest",
        "kernels",
        "train",
        "learns",
        "context",
        "embed",
        "serve",
    ]
    assert all(suite.summary and "\n" not in suite.summary for suite in list_suites())


def test_unknown_suite_names_the_known_ones_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(
        BenchError, match=r"no benchmark suite 'speed'; the suites are data, ingest, kernels, train"
    ):
        run(["kernels", "speed"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_name_and_a_file_for_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no benchmark suite was named"):
        run([], tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BenchError, match="is a file, and benchmark results need a folder"):
        run(["kernels"], file)


def test_result_says_what_ran_where_and_leaves_no_partial_file(
    demo: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (path,) = run(["demo"], Path("out/today"))
    record = json.loads(path.read_text())
    assert path == Path("out/today/demo.json")
    assert [file.name for file in path.parent.iterdir()] == ["demo.json"]
    assert record["command"] == "cellfoundry bench run demo --out out/today"
    assert record["versions"]["torch"]
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["memory_gib"] > 0
    assert [row["met"] for row in record["rows"]] == [None, "not measured"]
    assert record["curves"][0]["lines"]["ours"] == [[1.0, 2.0], [2.0, 3.0]]


def test_folder_outside_the_current_one_stays_out_of_the_record(demo: None, tmp_path: Path) -> None:
    (path,) = run(["demo"], tmp_path)
    assert str(tmp_path) not in path.read_text()


def test_progress_counts_suites(demo: None, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    run(["demo"], tmp_path, progress=lambda *step: seen.append(step))
    assert seen == [("demo", 0, 1), ("done", 1, 1)]


def test_folder_name_is_the_day_and_the_device_in_plain_letters() -> None:
    assert re.fullmatch(
        r"benchmarks/results/\d{4}-\d\d-\d\d-[a-z0-9]+(-[a-z0-9]+)*", default_folder().as_posix()
    )


def test_commit_is_that_of_the_file_and_not_of_a_repository_around_it() -> None:
    assert machine.commit() is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", machine.commit() or "")
    assert machine._git(Path(machine.__file__).parent, "ls-files", "--error-unmatch", "no such file") is None
