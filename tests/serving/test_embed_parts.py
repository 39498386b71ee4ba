"""Embedding in parts: stopped or killed anywhere, it goes on to the same output."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import onnx
import pytest
from forty_cells import Killed, assert_same, content, run, stop_at

from cellfoundry_serving.embed import embed
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.parts import plan, work_folder
from cellfoundry_serving.read_ahead import read_ahead

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.mark.parametrize("suffix", ["npy", "zarr", "h5ad", "parquet", "arrow"])
def test_a_stopped_embedding_goes_on_to_the_same_output(
    suffix: str, atlas: Path, model_dir: Path, tmp_path: Path
) -> None:
    out, undisturbed = tmp_path / f"out.{suffix}", tmp_path / f"undisturbed.{suffix}"
    run(atlas, model_dir, undisturbed)
    stop_at(25, atlas, model_dir, out)
    assert not out.exists()
    told: list[int] = []
    summary = run(atlas, model_dir, out, progress=lambda _label, done, _total: told.append(done))
    assert (summary.cells_before, summary.empty_cells) == (24, 1)
    assert "(24 cells were done before)" in str(summary)
    assert told[:3] == [0, 24, 24]
    assert_same(out, undisturbed)
    assert not list(tmp_path.glob(".*"))


EMBED = """
import sys
from cellfoundry_serving.parts import plan, work_folder

plan.PART_CELLS = 8
commit = work_folder.WorkFolder.commit

def commit_and_say(self, part, facts):
    commit(self, part, facts)
    print(part, flush=True)
    if part == 2:
        sys.stdin.read()

work_folder.WorkFolder.commit = commit_and_say
sys.argv[0] = "cellfoundry"
from cellfoundry.cli.main import run
run()
"""


@contextmanager
def command_at_part_two(*arguments: Any) -> Iterator[subprocess.Popen[str]]:
    """The real command, waiting after its third part."""
    process = subprocess.Popen(
        [sys.executable, "-c", EMBED, "embed", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.strip() == "2":
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_command_goes_on(atlas: Path, model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    with command_at_part_two(atlas, "--model", model_dir, "--out", out) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert run(atlas, model_dir, out).cells_before == 24
    run(atlas, model_dir, tmp_path / "undisturbed.zarr")
    assert_same(out, tmp_path / "undisturbed.zarr")


def test_ctrl_c_says_how_to_go_on_and_a_second_writer_is_refused(
    atlas: Path, model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    with command_at_part_two(atlas, "--model", model_dir, "--out", out) as process:
        with pytest.raises(ServingError, match="Another process is writing"):
            embed(atlas, model_dir, out)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert run(atlas, model_dir, out).cells_before == 24


def test_an_embedding_killed_at_any_rename_ends_the_same(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an older output, which is there until the new one is."""
    monkeypatch.setattr(plan, "PART_CELLS", 24)
    out, undisturbed = tmp_path / "out.zarr", tmp_path / "undisturbed.zarr"
    run(atlas, model_dir, undisturbed)
    older = tmp_path / "older.zarr"
    run(atlas, model_dir, older, pool="max")
    renames = {"left": 0}

    def counted(rename: Any) -> Any:
        def wrapped(*names: Any) -> Any:
            renames["left"] -= 1
            if renames["left"] < 0:
                raise Killed
            return rename(*names)

        return wrapped

    seen = []
    for renames_before in range(100):
        older.rename(out) if older.exists() else run(atlas, model_dir, out, pool="max")
        with monkeypatch.context() as patch:
            renames["left"] = renames_before
            patch.setattr(Path, "replace", counted(Path.replace))
            patch.setattr(Path, "rename", counted(Path.rename))
            patch.setattr("cellfoundry_serving.atomic.exchange", lambda *_: False)
            try:
                embed(atlas, model_dir, out)
            except Killed:
                seen.append(content(out)["embedding"].shape[1] if out.exists() else 0)
            except UserWarning:  # that a cell is empty, or that what is done stays
                if not (tmp_path / ".out.zarr.partial").exists():
                    break
                seen.append(content(out)["embedding"].shape[1] if out.exists() else 0)
        run(atlas, model_dir, out)
        assert_same(out, undisturbed)
        assert not list(tmp_path.glob(".*"))
    assert seen[0] == 32
    assert len(seen) > 5


def test_what_another_request_has_left_is_refused_and_fresh_discards_it(
    atlas: Path, model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.npy"
    stop_at(25, atlas, model_dir, out)
    with pytest.raises(
        ServingError, match=r"unfinished embedding of another --pool: .* add --fresh to discard it"
    ):
        embed(atlas, model_dir, out, pool="max")
    adata = ad.read_h5ad(atlas)
    adata.obs["new"] = 1.0
    adata.write_h5ad(atlas)
    with pytest.raises(
        ServingError, match="sources that have changed since, which cannot go on: add --fresh"
    ):
        embed(atlas, model_dir, out)
    assert run(atlas, model_dir, out, fresh=True).cells_before == 0
    assert not list(tmp_path.glob(".*"))


def test_a_source_that_changes_meanwhile_is_no_mix(atlas: Path, model_dir: Path, tmp_path: Path) -> None:
    def touch(_label: str, done: int, _total: int) -> None:
        if done == 8:
            os.utime(atlas, (1, 1))

    with (
        pytest.warns(UserWarning, match="the same command goes on"),
        pytest.raises(ServingError, match=r"atlas.h5ad was changed while it was embedded"),
    ):
        embed(atlas, model_dir, tmp_path / "out.npy", progress=touch)
    assert not (tmp_path / "out.npy").exists()


def test_reading_ahead_hands_errors_on_and_stops_with_its_caller() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number
            if number == 50:
                raise ValueError("fifty")

    taken = read_ahead(numbers(), ahead=2)
    assert next(taken) == 0
    taken.close()
    assert len(read) <= 5
    with pytest.raises(ValueError, match="fifty"):
        assert list(read_ahead(numbers())) == list(range(51))


def test_a_second_ctrl_c_ends_the_waiting_for_the_reader(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = threading.Thread.join

    def pressed_again(thread: threading.Thread, timeout: float | None = None) -> None:
        join(thread, timeout)
        if thread.name == "read-ahead":
            raise KeyboardInterrupt

    def pressed(_label: str, done: int, _total: int) -> None:
        if done > 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", pressed_again)
    with (
        pytest.warns(UserWarning, match="the same command goes on"),
        pytest.raises(KeyboardInterrupt) as raised,
    ):
        embed(atlas, model_dir, tmp_path / "out.npy", progress=pressed)
    assert raised.traceback[-1].name == "pressed_again"  # and not lost in a generator that nobody closed


def test_a_published_output_that_was_taken_away_is_made_again(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in ("npy", "parquet"):
        out, moved = tmp_path / f"out.{suffix}", tmp_path / f"moved.{suffix}"
        with monkeypatch.context() as patch:
            patch.setattr(work_folder.WorkFolder, "remove", killed)
            with pytest.raises(Killed):
                embed(atlas, model_dir, out)
        out.rename(moved)
        assert run(atlas, model_dir, out).cells_before == 0
        assert_same(out, moved)


def killed(*_: Any) -> None:
    raise Killed


def test_a_worker_whose_leader_was_killed_writes_where_nobody_looks(
    atlas: Path, model_dir: Path, tmp_path: Path
) -> None:
    out, undisturbed = tmp_path / "out.npy", tmp_path / "undisturbed.npy"
    run(atlas, model_dir, undisturbed, pool="max")
    stop_at(9, atlas, model_dir, out)
    orphan = work_folder.WorkFolder(tmp_path / ".out.npy.partial", out)
    stop_at(17, atlas, model_dir, out, pool="max", fresh=True)
    with pytest.raises(FileNotFoundError):
        orphan.commit(4, {"cells": 8, "empty": 0, "engine": "torch"})
    run(atlas, model_dir, out, pool="max")
    assert_same(out, undisturbed)


def test_a_damaged_work_folder_is_told_and_fresh_discards_it(
    atlas: Path, model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.npy"
    stop_at(9, atlas, model_dir, out)
    (request,) = tmp_path.glob(".out.npy.partial/**/request.json")
    request.write_text("{")
    with pytest.raises(ServingError, match=r"request\.json is damaged, .* add --fresh"):
        embed(atlas, model_dir, out)
    run(atlas, model_dir, out, fresh=True)


def test_another_version_is_told_to_begin_anew(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(9, atlas, model_dir, tmp_path / "out.npy")
    monkeypatch.setattr("cellfoundry_serving.embed.version", lambda _: "9.9.9")
    with pytest.raises(ServingError, match="another version of CellFoundry, which cannot go on: add --fresh"):
        embed(atlas, model_dir, tmp_path / "out.npy")


def test_another_export_of_the_model_does_not_go_on_with_an_embedding(
    atlas: Path, onnx_dir: Path, tmp_path: Path
) -> None:
    """Of int8 exports of one model each has numbers of its own, by the cells that calibrated it."""
    export = tmp_path / "export"
    shutil.copytree(onnx_dir, export)
    stop_at(9, atlas, export, tmp_path / "out.npy", engine="onnx")
    graph = onnx.load(export / "model.onnx")
    graph.producer_version = "another"
    onnx.save(graph, export / "model.onnx")
    with pytest.raises(
        ServingError,
        match="unfinished embedding of another export of the model, which cannot go on: add --fresh",
    ):
        embed(atlas, export, tmp_path / "out.npy", engine="onnx")


def test_another_provider_does_not_go_on_with_an_embedding(
    atlas: Path, onnx_dir: Path, tmp_path: Path
) -> None:
    stop_at(9, atlas, onnx_dir, tmp_path / "out.npy", engine="onnx")
    with pytest.raises(ServingError, match="unfinished embedding of another --provider"):
        embed(atlas, onnx_dir, tmp_path / "out.npy", engine="onnx", provider="cpu")
