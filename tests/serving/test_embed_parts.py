"""Embedding in parts: resumed after a kill to the same output, whatever computes; several sources; means and genes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import zarr
from anndata import AnnData

from cellfoundry_serving.embed import EmbedSummary, embed
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.parts import plan

N_GENES, N_CELLS = 400, 40


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PART_CELLS", 8)


@pytest.fixture
def atlas(engine: Engine, tmp_path: Path) -> Path:
    """Forty cells of four types, five parts of eight; the third cell has no counts, the fourth no type."""
    rng = np.random.default_rng(0)
    counts = sp.random(
        N_CELLS, N_GENES, 0.05, format="lil", rng=rng, data_rvs=lambda n: rng.geometric(0.3, n)
    )
    counts[2] = 0
    types = pd.Series([f"type {row % 4}" for row in range(N_CELLS)], dtype=object)
    types[3] = None
    obs = pd.DataFrame({"cell_type": types.to_numpy()}, index=[f"c{row}" for row in range(N_CELLS)])
    adata = AnnData(
        counts.tocsr().astype(np.float32), obs=obs, var=pd.DataFrame(index=list(engine.vocab_genes))
    )
    adata.write_h5ad(tmp_path / "atlas.h5ad")
    return tmp_path / "atlas.h5ad"


def run(*arguments: Any, **options: Any) -> EmbedSummary:
    """``embed``, of whose sources one cell has no counts."""
    if options.get("mean_by"):
        return embed(*arguments, **options)
    with pytest.warns(UserWarning, match="1 of .* cells have no counts"):
        return embed(*arguments, **options)


def content(out: Path) -> Any:
    """Every array of an output."""
    if out.suffix == ".npy":
        return {"embedding": np.load(out)}
    if out.suffix == ".zarr":
        group = zarr.open_group(out, mode="r")
        return {name: array[:] for name, array in group.arrays()}
    if out.suffix == ".h5ad":
        adata = ad.read_h5ad(out)
        return {"embedding": adata.obsm["X_cellfoundry"], "obs": adata.obs.astype(str).to_numpy()}
    if out.suffix == ".arrow":
        table = pa.ipc.open_file(out).read_all()
    else:
        table = pq.read_table(out)
    return {"embedding": np.stack(table["embedding"].to_pylist()), "cell": table["cell"].to_numpy()}


def assert_same(out: Path, undisturbed: Path) -> None:
    found, expected = content(out), content(undisturbed)
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


class Killed(BaseException):
    """Ends a call like a kill would: nothing of ours catches it."""


def killed_at(cells: int) -> Any:
    """A progress that dies when so many cells are told."""

    def progress(_label: str, done: int, _total: int) -> None:
        if done >= cells:
            raise Killed

    return progress


def stop_at(cells: int, *arguments: Any, **options: Any) -> None:
    with pytest.warns(UserWarning, match="the same command goes on from there"), pytest.raises(Killed):
        embed(*arguments, progress=killed_at(cells), **options)


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
