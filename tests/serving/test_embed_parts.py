"""Embedding in parts: resumed after a kill to the same output, whatever computes; several sources; means and genes."""

from __future__ import annotations

import os
import resource
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
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import zarr
from anndata import AnnData

from cellfoundry_data.store_cells import open_cells
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.embed import EmbedSummary, embed
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.parts import plan
from cellfoundry_serving.read_ahead import read_ahead

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
    table = pa.ipc.open_file(out).read_all() if out.suffix == ".arrow" else pq.read_table(out)
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
    with pytest.raises(ServingError, match="sources that have changed since"):
        embed(atlas, model_dir, out)
    assert run(atlas, model_dir, out, fresh=True).cells_before == 0
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_the_older_output_and_what_is_done(
    atlas: Path, model_dir: Path, tmp_path: Path
) -> None:
    out, undisturbed = tmp_path / "out.npy", tmp_path / "undisturbed.npy"
    run(atlas, model_dir, undisturbed, output="expression")
    older = b"older"
    out.write_bytes(older)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (undisturbed.stat().st_size // 2, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            embed(atlas, model_dir, out, output="expression")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert out.read_bytes() == older
    run(atlas, model_dir, out, output="expression")
    assert out.read_bytes() == undisturbed.read_bytes()


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


def test_mean_gene_embeddings_of_chosen_genes_by_group(
    atlas: Path, model_dir: Path, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHECKPOINT_S", "CHECKPOINT_SHARE"):
        monkeypatch.setattr(f"cellfoundry_serving.parts.means.{name}", 0)
    chosen = [engine.vocab_genes[at] for at in (7, 3, 200)]
    genes_file = tmp_path / "genes.txt"
    genes_file.write_text("\n".join(chosen) + "\n")
    options = {"output": "gene", "mean_by": "cell_type"}
    every = {"output": "gene", "genes": genes_file}
    run(atlas, model_dir, tmp_path / "every.zarr", **every)
    run(atlas, model_dir, tmp_path / "all.npy", output="gene")
    per_cell = content(tmp_path / "every.zarr")
    assert per_cell["genes"].tolist() == chosen
    np.testing.assert_array_equal(per_cell["embedding"], np.load(tmp_path / "all.npy")[:, [7, 3, 200]])

    out = tmp_path / "means.zarr"
    stop_at(25, atlas, model_dir, out, genes=",".join(chosen), **options)
    summary = run(atlas, model_dir, out, genes=",".join(chosen), **options)
    assert summary.cells_before >= 16
    assert "4 x 3 x 16 float32, means of 40 cells" in str(summary)
    means = content(out)
    types = [f"type {number}" for number in range(4)]
    assert means["groups"].tolist() == types
    assert means["n_cells"].tolist() == [10, 10, 9, 9]  # one has no counts, one no type
    cells = ad.read_h5ad(atlas).obs["cell_type"].astype(object).to_numpy()
    for group, name in enumerate(types):
        rows = per_cell["embedding"][cells == name].astype(np.float64)
        np.testing.assert_allclose(means["embedding"][group], np.nanmean(rows, axis=0), atol=1e-7, rtol=0)
    run(atlas, model_dir, tmp_path / "undisturbed.zarr", genes=chosen, **options)
    assert_same(out, tmp_path / "undisturbed.zarr")
    run(atlas, model_dir, tmp_path / "means.h5ad", output="expression", mean_by="cell_type")
    assert ad.read_h5ad(tmp_path / "means.h5ad").obs_names.tolist() == types


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "gene", "mean_by": "typ"}, r"--mean-by typ: obs of the source has cell_type; name one"),
        (
            {"output": "gene", "genes": "A1CF,NOPE,NADA"},
            r"--genes: NOPE, NADA are not among the model's 400 genes",
        ),
        ({"output": "gene", "genes": "A1CF,A1CF"}, "names A1CF twice"),
        ({"output": "gene", "genes": " , "}, "names no gene"),
        ({"genes": "A1CF"}, "Cell embeddings have no gene axis"),
        ({"shards": True}, "only .parquet and .arrow can be a folder of shards"),
        ({"mean_by": "cell_type", "shards": True}, "only .parquet and .arrow"),
    ],
)
def test_wrong_options_leave_nothing(
    atlas: Path, model_dir: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ServingError, match=message):
        embed(atlas, model_dir, tmp_path / "out.npy", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["atlas.h5ad"]


def test_shards_hold_the_rows_in_order(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellfoundry_serving.outputs.tables.SHARD_BYTES", 15 * 4 * 128)
    run(atlas, model_dir, tmp_path / "single.parquet")
    for suffix in ("parquet", "arrow"):
        out = tmp_path / f"out.{suffix}"
        for _ in range(2):  # the second time over the first
            run(atlas, model_dir, out, shards=True)
        assert sorted(path.name for path in out.iterdir()) == [f"part-0000{n}.{suffix}" for n in range(3)]
    assert_same(tmp_path / "out.parquet", tmp_path / "single.parquet")
    tables = [pa.ipc.open_file(path).read_all() for path in sorted((tmp_path / "out.arrow").iterdir())]
    assert pa.concat_tables(tables)["cell"].to_pylist() == [f"c{row}" for row in range(N_CELLS)]
    (tmp_path / "out.arrow" / "mine.txt").write_text("text")
    with pytest.raises(ServingError, match=r"out\.arrow is a folder and no earlier embedding"):
        embed(atlas, model_dir, tmp_path / "out.arrow")


def test_a_folder_of_several_formats_is_one_source(
    atlas: Path, model_dir: Path, tmp_path: Path, engine: Engine
) -> None:
    adata = ad.read_h5ad(atlas)
    folder = tmp_path / "donors"
    folder.mkdir()
    adata[:13].copy().write_h5ad(folder / "a.h5ad")
    adata[13:20].to_df().to_csv(folder / "b.csv")
    columns = adata[20:].copy()
    columns.X = columns.X.tocsc()  # read through a temporary file, not row by row
    columns.write_h5ad(folder / "c.h5ad")
    run(atlas, model_dir, tmp_path / "whole.npy")
    run(folder, model_dir, tmp_path / "out.h5ad")
    run([folder / "c.h5ad", folder / "a.h5ad"], model_dir, tmp_path / "two.npy")
    whole, joined = np.load(tmp_path / "whole.npy"), ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_allclose(joined.obsm["X_cellfoundry"], whole, atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        np.load(tmp_path / "two.npy"), whole[[*range(20, 40), *range(13)]], atol=1e-6, rtol=0
    )
    assert joined.obs["source"].tolist() == ["a.h5ad"] * 13 + ["b.csv"] * 7 + ["c.h5ad"] * 20
    assert joined.obs["source_row"].tolist() == [*range(13), *range(7), *range(20)]
    assert joined.obs_names.tolist() == adata.obs_names.tolist()
    with pytest.raises(ServingError, match="lies in the source"):
        embed(folder, model_dir, folder / "out.h5ad")
    with pytest.raises(ServingError, match="is the source itself"):
        embed([folder / "c.h5ad", folder / "a.h5ad"], model_dir, folder / "a.h5ad")


def test_any_range_of_joined_cells_is_what_the_whole_has_there(
    atlas: Path, tmp_path: Path, engine: Engine
) -> None:
    paths = []
    for name, rows in (("a", slice(0, 13)), ("b", slice(13, 14)), ("c", slice(14, 40))):
        paths.append(tmp_path / f"{name}.h5ad")
        ad.read_h5ad(atlas)[rows].copy().write_h5ad(paths[-1])
    vocabulary = Vocabulary(engine.vocab_genes)
    joined = open_cells(paths, vocabulary)
    whole, _ = next(open_cells(atlas, vocabulary).blocks(N_CELLS))
    for block_cells, start, stop in ((5, 0, 40), (100, 0, None), (1, 12, 15), (7, 3, 33), (4, 13, 14)):
        row = start
        for cells, totals in joined.blocks(block_cells, start, stop):
            expected = whole.select(np.arange(row, row + len(cells)))
            assert totals is None
            for name in ("indptr", "gene_ids", "counts", "row_ids"):
                np.testing.assert_array_equal(getattr(cells, name), getattr(expected, name))
            row += len(cells)
            assert len(cells) == block_cells or row == (stop or N_CELLS)
        assert row == (stop or N_CELLS)


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


def ray_actor() -> psutil.Process:
    """The worker process of this test's Ray cluster that embeds."""
    started = psutil.Process().children(recursive=True)
    return next(each for each in started if "EmbedActor" in " ".join(each.cmdline()))


@pytest.mark.usefixtures("ray_local")
def test_ray_workers_write_the_same_though_one_is_killed(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(atlas, model_dir, tmp_path / "here.zarr")
    killed: list[psutil.Process] = []

    def kill_once(_label: str, done: int, _total: int) -> None:
        if done and not killed:
            killed.append(ray_actor())
            killed[0].kill()

    summary = run(atlas, model_dir, tmp_path / "there.zarr", workers=1, progress=kill_once)
    assert killed
    assert "by 1 Ray worker of a CPU each (--workers)" in str(summary)
    assert_same(tmp_path / "there.zarr", tmp_path / "here.zarr")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("ray_local")
def test_ray_workers_go_on_with_means_that_this_process_began(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHECKPOINT_S", "CHECKPOINT_SHARE"):
        monkeypatch.setattr(f"cellfoundry_serving.parts.means.{name}", 0)
    options = {"output": "gene", "mean_by": "cell_type"}
    run(atlas, model_dir, tmp_path / "here.zarr", **options)
    stop_at(25, atlas, model_dir, tmp_path / "there.zarr", **options)
    assert run(atlas, model_dir, tmp_path / "there.zarr", workers=1, **options).cells_before >= 16
    assert_same(tmp_path / "there.zarr", tmp_path / "here.zarr")


@pytest.mark.usefixtures("ray_local")
def test_a_cluster_without_several_gpus_leaves_the_work_to_this_process(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    summary = run(atlas, model_dir, tmp_path / "out.npy")
    assert "in one process (the cluster of RAY_ADDRESS has no GPU" in str(summary)


@pytest.mark.usefixtures("ray_local")
def test_mistakes_with_ray_workers_are_told_in_one_sentence(
    atlas: Path, model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ServingError, match=r"2 workers and the one CPU that reads need 3 CPUs .* has 2"):
        embed(atlas, model_dir, tmp_path / "out.npy", workers=2)
    with pytest.raises(ServingError, match="no such model directory"):
        embed(atlas, tmp_path / "model", tmp_path / "out.npy", workers=1)
    with pytest.raises(ServingError, match="An AnnData in memory is embedded by this process"):
        embed(ad.read_h5ad(atlas), model_dir, tmp_path / "out.npy", workers=1)
