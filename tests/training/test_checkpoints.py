"""Checkpoints on disk: what was saved comes back bit for bit, or the one before does, and the reason is said."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cellfoundry_training import checkpoint_files, history
from cellfoundry_training.checkpoint_files import Checkpoint, DamagedError, Manifest, Tensors
from cellfoundry_training.checkpoints import Checkpoints
from cellfoundry_training.config import load_config
from cellfoundry_training.engine_state import part_owners
from cellfoundry_training.errors import TrainingError
from cellfoundry_training.files import RunFiles
from cellfoundry_training.run_start import RunStart
from cellfoundry_training.state import RunState

NAMES = st.text(min_size=1, max_size=20)
SHAPES = st.lists(st.integers(0, 5), max_size=3)
KINDS = st.sampled_from([torch.float32, torch.uint8])
BIG = 100_000


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A world of this process alone."""
    rendezvous = tmp_path_factory.mktemp("world") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Run:
    """Checkpoints of a small run, and what it was warned of."""

    def __init__(self, folder: Path, keep: int = 2, keep_best: bool = False) -> None:
        self.folder, self.warnings = folder, list[str]()
        self.checkpoints = Checkpoints(
            folder, 0, 1, keep=keep, keep_best=keep_best, warn=self.warnings.append
        )

    def save(self, step: int, heldout_loss: float | None = None) -> None:
        evaluated = None if heldout_loss is None else step
        state = RunState(step=step, evaluated_step=evaluated, heldout_loss=heldout_loss)
        self.checkpoints.save({"weight/a": torch.full((BIG,), float(step))}, manifest(state))
        self.checkpoints.finish()

    def steps(self) -> list[int]:
        return [checkpoint_files.step_of(folder) for folder in checkpoint_files.listed(self.folder)]


def manifest(state: RunState) -> Manifest:
    return Manifest(state=state, optimizer_step=state.step, ranks=1, zero_stage=0, config_hash="0", files=())


@given(
    parts=st.lists(st.dictionaries(NAMES, st.tuples(SHAPES, KINDS), max_size=4), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_tensors_come_back_bit_for_bit_whatever_their_names_and_shapes(
    parts: list[dict[str, tuple[list[int], torch.dtype]]], seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    # No two ranks keep the same tensor.
    saved = [
        {f"{rank}{name}": random_tensor(*kind, draw) for name, kind in part.items()}
        for rank, part in enumerate(parts)
    ]
    with TemporaryDirectory() as folder:
        partial, published = Path(folder) / "partial", Path(folder) / checkpoint_files.folder_name(7)
        files = [
            checkpoint_files.write_part(partial, rank, len(parts), part) for rank, part in enumerate(saved)
        ]
        state = RunState(step=7, seconds=0.1, loader={"epoch": 3})
        checkpoint_files.publish(
            partial, published, manifest(state).model_copy(update={"files": tuple(files)})
        )
        found = checkpoint_files.read_manifest(published)
        assert found.state == state
        with Tensors(Checkpoint(published, found)) as tensors:
            for name, tensor in itertools.chain.from_iterable(part.items() for part in saved):
                assert_same(tensors.get(name), tensor)
        for entry, part in zip(found.files, saved, strict=True):
            checkpoint_files.check_file(published, entry)
            library = safetensors.torch.load_file(published / entry.name)
            assert library.keys() == part.keys()
            for name, tensor in part.items():
                assert_same(library[name], tensor)


def random_tensor(shape: list[int], kind: torch.dtype, draw: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (*shape, 4), generator=draw, dtype=torch.uint8).view(kind)


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal bytes, NaN included."""
    assert found.shape == expected.shape
    assert torch.equal(found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


@given(st.dictionaries(NAMES, st.integers(1, 1000)), st.integers(1, 9))
def test_ranks_keep_nearly_equal_parts(sizes: dict[str, int], ranks: int) -> None:
    owners = part_owners(sizes, ranks)
    load = [sum(sizes[name] for name in sizes if owners[name] == rank) for rank in range(ranks)]
    assert sum(load) == sum(sizes.values())
    assert max(load) - min(load) <= max(sizes.values(), default=0)


def test_every_flipped_byte_and_every_missing_one_is_detected(alone: None, tmp_path: Path) -> None:
    state, folder = RunState(step=1, loader={"epoch": 0}), tmp_path / checkpoint_files.folder_name(1)
    entry = checkpoint_files.write_part(tmp_path / "partial", 0, 1, {"weight/a": torch.arange(99.0)})
    checkpoint_files.publish(
        tmp_path / "partial", folder, manifest(state).model_copy(update={"files": (entry,)})
    )

    def check() -> None:
        found = checkpoint_files.read_manifest(folder)
        assert found.state == state  # a flipped space changes nothing
        for each in found.files:
            checkpoint_files.check_file(folder, each)

    check()
    tried = 0
    for path in folder.iterdir():
        whole = path.read_bytes()
        for place in range(len(whole)):
            if whole[place : place + 1].isspace() and path.suffix == ".json":
                continue
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(DamagedError, match=path.name):
                check()
            path.write_bytes(whole[:place])
            with pytest.raises(DamagedError, match=path.name):
                check()
            tried += 1
        path.unlink()
        with pytest.raises(DamagedError, match=path.name):
            check()
        path.write_bytes(whole)
    assert tried > 900


def test_a_damaged_checkpoint_is_passed_over_in_one_sentence(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (10, 20):
        run.save(step)
    latest = tmp_path / checkpoint_files.folder_name(20)
    damaged = next(latest.glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-5])

    resumed = Run(tmp_path)
    found = resumed.checkpoints.newest()
    assert found is not None
    assert found.manifest.state.step == 10
    (sentence,) = resumed.warnings
    assert str(damaged.parent) in sentence
    assert damaged.name in sentence
    assert f"goes on from {tmp_path / checkpoint_files.folder_name(10)}" in sentence
    assert (tmp_path / f"damaged-{latest.name}").is_dir()
    # The run comes by step 20 again and saves it anew.
    resumed.save(20)
    assert resumed.steps() == [20, 10]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(10)
    (tmp_path / checkpoint_files.folder_name(10) / checkpoint_files.MANIFEST).unlink()
    with pytest.raises(TrainingError, match=r"is damaged \(manifest\.json cannot be read .* no other one"):
        run.checkpoints.newest()
    assert run.steps() == [10]


def test_a_checkpoint_of_another_version_is_refused(alone: None, tmp_path: Path) -> None:
    partial, folder = tmp_path / "partial", tmp_path / checkpoint_files.folder_name(10)
    partial.mkdir()
    later = manifest(RunState(step=10)).model_copy(update={"version": 2})
    checkpoint_files.publish(partial, folder, later)
    with pytest.raises(TrainingError, match="format version 2, but only 1 is read"):
        Run(tmp_path).checkpoints.newest()


def test_a_full_disk_costs_the_checkpoint_and_not_the_one_before(
    alone: None, tmp_path: Path, files_no_larger_than: Callable[[int], AbstractContextManager[None]]
) -> None:
    run = Run(tmp_path)
    run.save(10)
    with files_no_larger_than(BIG):
        run.save(20)
    (sentence,) = run.warnings
    assert str(tmp_path / checkpoint_files.folder_name(20)) in sentence
    assert "File too large" in sentence
    assert f"{tmp_path / checkpoint_files.folder_name(10)} stays the newest" in sentence
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_files.folder_name(10)]
    found = run.checkpoints.newest()
    assert found is not None
    assert found.manifest.state.step == 10
    run.save(30)
    assert run.steps() == [30, 10]


def test_the_newest_and_the_best_are_kept(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2, keep_best=True)
    for step, loss in ((10, 3.0), (20, 1.0), (30, 1.0), (40, None), (50, 2.0), (60, 4.0)):
        run.save(step, loss)
    assert run.steps() == [60, 50, 30]
    assert {path.name for path in tmp_path.iterdir()} == {
        checkpoint_files.folder_name(step) for step in run.steps()
    }


def test_an_old_checkpoint_that_cannot_be_removed_is_not_called_a_failed_save(
    alone: None, tmp_path: Path
) -> None:
    run = Run(tmp_path, keep=1)
    run.save(10)
    (tmp_path / f".{checkpoint_files.folder_name(10)}.removed").write_text("a file is in the way")
    run.save(20)
    (sentence,) = run.warnings
    assert f"{tmp_path / checkpoint_files.folder_name(10)} is no longer needed but could not be" in sentence
    assert run.steps() == [20, 10]


def test_a_save_waits_for_the_one_before_and_training_for_none(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, real = threading.Event(), checkpoint_files.write_part

    def slow(*arguments: object) -> object:
        disk.wait()
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint_files, "write_part", slow)
    run = Run(tmp_path)
    run.checkpoints.save({"weight/a": torch.zeros(3)}, manifest(RunState(step=10)))
    assert run.checkpoints.is_writing
    assert run.steps() == []
    threading.Timer(0.1, disk.set).start()
    run.checkpoints.save({"weight/a": torch.zeros(3)}, manifest(RunState(step=20)))
    assert run.steps() == [10]
    run.checkpoints.finish()
    assert run.steps() == [20, 10]
    assert not run.checkpoints.is_open


def test_what_a_killed_save_left_is_neither_loaded_nor_kept(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(10)
    killed = tmp_path / f".{checkpoint_files.folder_name(20)}.0123abcd"
    checkpoint_files.write_part(killed, 0, 1, {"weight/a": torch.zeros(3)})
    found = Run(tmp_path).checkpoints.newest()
    assert found is not None
    assert found.manifest.state.step == 10
    assert not killed.exists()


def test_a_resume_without_a_checkpoint_says_that_it_starts_again(alone: None, tmp_path: Path) -> None:
    warnings, files = list[str](), RunFiles(tmp_path)
    RunStart(files, load_config("tiny"), 0, 1, warnings.append)
    assert not warnings
    history.append(files.metrics, [{"step": 3, "loss": 1.0}])
    files.heartbeats.rmdir()  # as the driver does before it resumes; ranks that Ray starts again find it
    RunStart(files, load_config("tiny"), 0, 1, warnings.append)
    assert warnings == [f"no checkpoint under {files.checkpoints}: the run starts again from step 0"]


def test_a_tensor_of_another_model_is_refused(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(10)
    found = run.checkpoints.newest()
    assert found is not None
    with Tensors(found) as tensors, pytest.raises(TrainingError, match="has no weight/b: resume with"):
        tensors.get("weight/b")
