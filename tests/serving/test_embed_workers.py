"""Embedding by Ray workers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import psutil
import pytest
import torch
from forty_cells import assert_same, run, stop_at
from soak_server import CONFIG, GENES

from cellfoundry_data.joined_cells import Cells
from cellfoundry_data.ray_cluster import usable_cpus
from cellfoundry_model.architecture import CellModel
from cellfoundry_model.checkpoint import save_model
from cellfoundry_serving.embed import embed
from cellfoundry_serving.encode import open_for
from cellfoundry_serving.errors import ServingError

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What a worker of one CPU has: sums of a matrix product in another order differ in their last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ray_actor() -> psutil.Process:
    """The worker process of this test's Ray cluster that embeds."""
    started = psutil.Process().children(recursive=True)
    return next(each for each in started if "EmbedActor" in " ".join(each.cmdline()))


@pytest.mark.usefixtures("ray_local", "one_thread")
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
def test_workers_with_another_model_are_told_of(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_dir, tmp_path / "model")
    torch.manual_seed(1)

    def replaced(*arguments: Any) -> Cells:
        save_model(CellModel(CONFIG), GENES, tmp_path / "model", {})
        return open_for(*arguments)

    monkeypatch.setattr("cellfoundry_serving.embed.open_for", replaced)
    with pytest.raises(ServingError, match=r"model on .* holds another model than where the embedding began"):
        embed(atlas, tmp_path / "model", tmp_path / "out.zarr", workers=1)
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.usefixtures("ray_local", "one_thread")
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
    with pytest.raises(ServingError, match="--num-gpus 1: the cluster has no GPU; leave --num-gpus out"):
        embed(atlas, model_dir, tmp_path / "out.npy", workers=1, num_gpus=1)
    with pytest.raises(ServingError, match="no such model directory"):
        embed(atlas, tmp_path / "model", tmp_path / "out.npy", workers=1)
    with pytest.raises(ServingError, match="An AnnData in memory is embedded by this process"):
        embed(ad.read_h5ad(atlas), model_dir, tmp_path / "out.npy", workers=1)


def test_a_machine_is_not_given_more_workers_than_cpus(
    atlas: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # whatever other tests have started
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cpus = usable_cpus()
    with pytest.raises(ServingError, match=f"this machine has {cpus}; give --workers {cpus} or fewer"):
        embed(atlas, model_dir, tmp_path / "out.npy", workers=cpus + 1)
