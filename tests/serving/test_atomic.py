from __future__ import annotations

import os
from pathlib import Path

import pytest

from cellfoundry_serving.atomic import atomic_path, check_parent
from cellfoundry_serving.errors import ServingError


def write(path: Path, kind: str, text: str) -> None:
    if kind == "folder":
        path.mkdir()
        path = path / "inside"
    path.write_text(text)


def read(path: Path) -> str:
    return (path / "inside" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("older", ["nothing", "file", "folder"])
@pytest.mark.parametrize("newer", ["file", "folder"])
def test_any_older_output_gives_way(tmp_path: Path, older: str, newer: str) -> None:
    target = tmp_path / "out"
    if older != "nothing":
        write(target, older, "old")
    with atomic_path(target) as partial:
        write(partial, newer, "new")
    assert read(target) == "new"
    assert target.is_dir() == (newer == "folder")
    assert list(tmp_path.iterdir()) == [target]


def test_an_interruption_between_the_renames_brings_the_older_output_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    write(target, "folder", "old")
    rename = Path.replace

    def interrupted(path: Path, to: Path) -> Path:
        if path.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr("cellfoundry_serving.atomic.exchange", lambda *_: False)  # as on other systems
    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as partial:
        write(partial, "folder", "new")
    assert read(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_written_is_refused_before_work(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(ServingError, match="is not writable for you"):
        check_parent(tmp_path / "out.npy")
    tmp_path.chmod(0o700)
