"""Embedding onto a disk that is too small or fills up."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forty_cells import N_CELLS, assert_same, run

from cellfoundry_serving.embed import embed
from cellfoundry_serving.errors import ServingError

pytestmark = pytest.mark.usefixtures("small_parts")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk is to a test that may not mount one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", ["h5ad", "parquet", "arrow"])
def test_a_disk_that_is_full_when_the_output_is_assembled_costs_no_part(
    suffix: str, atlas: Path, model_dir: Path, tmp_path: Path
) -> None:
    out, undisturbed = tmp_path / f"out.{suffix}", tmp_path / f"undisturbed.{suffix}"
    run(atlas, model_dir, undisturbed)
    waiting_rows = 4 * N_CELLS * 128 + 128
    assert waiting_rows < undisturbed.stat().st_size
    with (
        files_of_at_most(waiting_rows),
        pytest.warns(UserWarning, match="the same command goes on"),
        pytest.raises(
            ServingError, match=rf"out\.{suffix} could not be written .* make space and run the same"
        ),
    ):
        embed(atlas, model_dir, out)
    assert run(atlas, model_dir, out).cells_before == N_CELLS
    assert_same(out, undisturbed)


def test_the_disk_must_have_room_for_the_waiting_rows_and_the_output(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 4 * N_CELLS * 128
    usage = shutil.disk_usage(tmp_path)
    for suffix, needed in (
        ("npy", rows),
        ("parquet", 2 * rows),
        ("h5ad", 2 * rows + atlas.stat().st_size),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=needed - 1: usage._replace(free=free))
        with pytest.raises(ServingError, match=r"GB while it is written and 0\.0 GB are free"):
            embed(atlas, model_dir, tmp_path / f"out.{suffix}")
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=needed: usage._replace(free=free))
        run(atlas, model_dir, tmp_path / f"out.{suffix}")


def test_a_full_disk_leaves_the_older_output_and_what_is_done(
    atlas: Path, model_dir: Path, tmp_path: Path
) -> None:
    out, undisturbed = tmp_path / "out.npy", tmp_path / "undisturbed.npy"
    run(atlas, model_dir, undisturbed, output="expression")
    older = b"older"
    out.write_bytes(older)
    with (
        files_of_at_most(undisturbed.stat().st_size // 2),
        pytest.raises(ServingError, match=r"out\.npy could not be written \(File too large"),
    ):
        embed(atlas, model_dir, out, output="expression")
    assert out.read_bytes() == older
    run(atlas, model_dir, out, output="expression")
    assert out.read_bytes() == undisturbed.read_bytes()
