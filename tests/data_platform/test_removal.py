"""Removing folders that a failed run's threads and workers still write into."""

from __future__ import annotations

import threading
from pathlib import Path

from cellfoundry_data.store.replace import remove


def test_a_folder_goes_although_a_late_writer_still_adds_files(tmp_path: Path) -> None:
    inner = tmp_path / "work" / "shards" / "000000"
    inner.mkdir(parents=True)
    begun = threading.Event()

    def write() -> None:
        try:
            for number in range(500):
                (inner / str(number)).write_bytes(b"late")
                begun.set()
        except FileNotFoundError:
            pass

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait(timeout=10)
    remove(tmp_path / "work")
    writer.join()
    assert not list(tmp_path.iterdir())


def test_files_links_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "cells").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("link", "missing"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "cells"]
