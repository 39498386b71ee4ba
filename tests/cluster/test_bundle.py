"""What travels with a job: the package complete, small inputs, and nothing large."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cellfoundry.cluster.bundle import MAX_INPUT_BYTES, PACKAGES, Bundle
from cellfoundry.cluster.errors import ClusterError

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_package_travels_as_the_wheel_has_it(tmp_path: Path) -> None:
    targets = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert [Path(package).name for package in targets["wheel"]["packages"]] == list(PACKAGES)
    Bundle().write(tmp_path)
    code = (
        "import cellfoundry, cellfoundry_data, importlib.metadata as m;"
        "from cellfoundry_data.bundled import baron_h5ad;"
        "d = m.distribution('cellfoundry'); print(cellfoundry.__file__, cellfoundry_data.__file__, d._path, d.version)"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    package, data, metadata, version = ran.stdout.split()
    from cellfoundry import __version__

    assert {Path(package).parents[1], Path(data).parents[1], (tmp_path / metadata).parent} == {tmp_path}
    assert version == __version__


def test_inputs_lie_where_their_arguments_say(tmp_path: Path) -> None:
    for name in ("one/x.h5ad", "two/x.h5ad", "folder/deep/y"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "folder" / ".gitignore").write_text("*")
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "two" / "x.h5ad")
    bundle, target = Bundle(), tmp_path / "job"
    places = [bundle.add(tmp_path / name) for name in ("one/x.h5ad", "two/x.h5ad", "folder", "link.h5ad")]
    target.mkdir()
    bundle.write(target)
    assert [(target / place).read_text() for place in places if (target / place).is_file()] == [
        "one/x.h5ad",
        "two/x.h5ad",
        "two/x.h5ad",
    ]
    assert (target / places[2] / "deep" / "y").read_text() == "folder/deep/y"


def sparse_file(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_a_large_input_is_refused_by_name(tmp_path: Path) -> None:
    large = sparse_file(tmp_path / "atlas.h5ad", MAX_INPUT_BYTES + 1)
    with pytest.raises(ClusterError, match=r"atlas\.h5ad has 100 MB, more than the 100 MB.*give a URL"):
        Bundle().add(large)


def test_inputs_together_are_refused_and_a_folder_counts(tmp_path: Path) -> None:
    folder = tmp_path / "donors"
    folder.mkdir()
    sparse_file(folder / "a", MAX_INPUT_BYTES // 2)
    bundle = Bundle()
    bundle.add(folder)
    with pytest.raises(ClusterError, match=r"b\.h5ad has 60 MB and 50 MB travel already"):
        bundle.add(sparse_file(tmp_path / "b.h5ad", 60_000_000))


def test_what_a_link_leads_to_counts_and_travels(tmp_path: Path) -> None:
    elsewhere, folder, job = tmp_path / "elsewhere", tmp_path / "donors", tmp_path / "job"
    for made in (elsewhere, folder, folder / "empty", job):
        made.mkdir()
    large = sparse_file(elsewhere / "a", MAX_INPUT_BYTES + 1)
    (folder / "one").symlink_to(elsewhere)
    with pytest.raises(ClusterError, match="donors has 100 MB, more than the 100 MB"):
        Bundle().add(folder)
    large.write_text("cells")
    (folder / "two").symlink_to(elsewhere)  # the same folder twice is no loop
    bundle = Bundle()
    place = job / bundle.add(folder)
    bundle.write(job)
    assert [(place / name / "a").read_text() for name in ("one", "two")] == ["cells", "cells"]
    assert (place / "empty").is_dir()
    assert not [path for path in place.rglob("*") if path.is_symlink()]


def test_a_broken_link_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "gone.h5ad").symlink_to(tmp_path / "nothere")
    with pytest.raises(ClusterError, match=r"gone\.h5ad is a broken link.*remove it"):
        Bundle().add(tmp_path)


def test_a_loop_of_links_is_refused_by_name(tmp_path: Path) -> None:
    for name, target in (("one", "two"), ("two", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "other").symlink_to(tmp_path / target)
    with pytest.raises(ClusterError, match=r"one/other/other is a link to a folder that it lies in"):
        Bundle().add(tmp_path)


def test_a_pipe_is_refused_instead_of_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ClusterError, match="pipe is no ordinary file"):
        Bundle().add(tmp_path)
