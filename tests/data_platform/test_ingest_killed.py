"""An ingest killed anywhere: readers see the old store or the new one, and the same call makes the store that an
undisturbed one makes.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import scipy.sparse as sp

from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest import ingest
from cellfoundry_data.store import open_store, verify
from cellfoundry_data.vocabulary import Vocabulary

GENES = [f"GENE{number}" for number in range(400)]
OPTIONS: dict[str, Any] = {"min_genes": 1, "cells_per_shard": 20}

WriteSource = Callable[..., str]


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    path = tmp_path / "genes.tsv"
    Vocabulary(tuple(GENES)).write_tsv(path)
    return str(path)


def counts(n_cells: int, seed: int) -> sp.csr_matrix:
    return sp.csr_matrix(np.random.default_rng(seed).poisson(0.4, (n_cells, 400)))


def files(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()
    }


INGEST = """
import json, sys
from cellfoundry_data.ingest import ingest, plan

plan.PART_CELLS = 25
options = json.loads(sys.argv[2])
ingest(json.loads(sys.argv[1]), options.pop("store"), **options, progress=lambda *step: print(step[0], flush=True))
"""


@contextmanager
def ray_folder() -> Iterator[str]:
    """Below /tmp, because the paths of Ray's sockets must be short."""
    folder = tempfile.mkdtemp(prefix="cf")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kill_at(label: str, messages: int, sources: list[str], **options: Any) -> None:
    """Run an ingest with a Ray of its own; kill it and all it started at the n-th progress of ``label``."""
    with ray_folder() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", INGEST, json.dumps(sources), json.dumps(options, default=str)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                messages -= line.strip() == label
                if not messages:
                    break
        finally:
            for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                each.kill()
            process.stdout.close()
            assert process.wait(timeout=60) == -signal.SIGKILL


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(("label", "messages"), [("read cells", 2), ("write shards", 2)])
def test_a_killed_ingest_goes_on_and_makes_the_same_store(
    label: str,
    messages: int,
    tmp_path: Path,
    vocabulary: str,
    write_source: WriteSource,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = write_source(tmp_path / "old.h5ad", counts(30, 1), GENES)
    new = write_source(tmp_path / "new.h5ad", counts(110, 2), GENES, tissue=["lung"] * 110)
    store, options = tmp_path / "store", {"vocab": vocabulary, **OPTIONS}
    before = ingest([old], store, **options)
    kill_at(label, messages, [new], store=store, **options)
    assert open_store(store).manifest == before
    assert not verify(store).bad

    monkeypatch.setattr("cellfoundry_data.ingest.plan.PART_CELLS", 25)
    kept = list((tmp_path / ".store.partial").glob("parts/*"))
    assert len(kept) >= {"read cells": 1, "write shards": 5}[label]
    steps: list[tuple[str, int, int]] = []
    ingest([new], store, **options, progress=lambda *step: steps.append(step))
    read = [done for name, done, _ in steps if name == "read cells"]
    assert min(read, default=110) > 25 * len(kept) - 25
    ingest([new], tmp_path / "undisturbed", **options)
    assert files(store) == files(tmp_path / "undisturbed")
    assert not (tmp_path / ".store.partial").exists()


class Killed(BaseException):
    """Ends a call like a kill would: nothing of ours catches it."""


@contextmanager
def killed_after(renames: int) -> Iterator[None]:
    """Let so many renames happen and die at the next."""
    patch = pytest.MonkeyPatch()
    left = renames

    def counted(rename: Callable[..., Path]) -> Callable[..., Path]:
        def wrapped(path: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return rename(path, target)

        return wrapped

    patch.setattr(Path, "rename", counted(Path.rename))
    patch.setattr(Path, "replace", counted(Path.replace))
    try:
        yield
    finally:
        patch.undo()


def kill_at_each_rename(run: Callable[[], Any], store: Path, undisturbed: Path) -> list[int]:
    """Kill ``run`` at its first rename in this process, then from the same state at its second, ... and let it
    end; which of the states before and after (0, 1) a reader saw each time.
    """
    states = [files(store), files(undisturbed)]
    manifests = [open_store(store).manifest, open_store(undisturbed).manifest]
    before = store.with_name("before")
    shutil.copytree(store, before)
    seen = []
    for renames in itertools.count():
        shutil.rmtree(store)
        shutil.copytree(before, store)
        try:
            with killed_after(renames), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that what is done stays
                run()
        except Killed:
            assert not verify(store).bad
            assert open_store(store).obs.num_rows == open_store(store).n_cells
            seen.append(manifests.index(open_store(store).manifest))
            run()
        else:
            return seen
        assert files(store) == states[1]
        assert sorted(path.name for path in store.parent.iterdir() if path.is_dir()) == sorted(
            [before.name, store.name, undisturbed.name]
        )
    raise AssertionError


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("append", [False, True])
def test_an_ingest_killed_at_any_rename_leaves_the_old_store_or_the_new(
    append: bool, tmp_path: Path, vocabulary: str, write_source: WriteSource
) -> None:
    old = write_source(tmp_path / "old.h5ad", counts(30, 1), GENES)
    new = write_source(tmp_path / "new.h5ad", counts(50, 2), GENES)
    store, undisturbed = tmp_path / "store", tmp_path / "undisturbed"
    options = {"vocab": vocabulary, **OPTIONS}
    for folder in (store, undisturbed):
        ingest([old], folder, **options)
    ingest([new], undisturbed, append=append, **options)
    seen = kill_at_each_rename(lambda: ingest([new], store, append=append, **options), store, undisturbed)
    assert seen == sorted(seen)
    assert seen.count(0) >= 4 + 6 * append
    assert append or seen[-1] == 1


@pytest.mark.usefixtures("ray_local")
def test_what_a_killed_append_moved_in_is_removed_by_the_next_writer(
    tmp_path: Path, vocabulary: str, write_source: WriteSource
) -> None:
    sources = [write_source(tmp_path / f"{n}.h5ad", counts(30 + n, n), GENES) for n in range(3)]
    options = {"vocab": vocabulary, **OPTIONS}
    store, clean = tmp_path / "store", tmp_path / "clean"
    for folder in (store, clean):
        ingest(sources[:1], folder, **options)
    (store / "report.html").write_text("the user's own")
    before = set(files(store))

    def moved_in() -> bool:
        return bool({path.partition("/")[0] for path in set(files(store)) - before} & {"shards"})

    renames = 0
    while not moved_in():
        with killed_after(renames), warnings.catch_warnings(), suppress(Killed):
            warnings.simplefilter("ignore")
            ingest(sources[1:2], store, append=True, **options)
        renames += 1
    with pytest.warns(UserWarning, match="unfinished ingest into store had left was removed"):
        ingest(sources[2:], store, append=True, **options)
    ingest(sources[2:], clean, append=True, **options)
    assert files(store) == files(clean) | {"report.html": b"the user's own"}


@pytest.mark.usefixtures("ray_local")
def test_a_wrong_cell_deep_in_a_source_keeps_the_old_store_and_what_is_done(
    tmp_path: Path, vocabulary: str, write_source: WriteSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_source(tmp_path / "good.h5ad", counts(150, 1), GENES)
    store, options = tmp_path / "store", {"vocab": vocabulary, **OPTIONS}
    monkeypatch.chdir(tmp_path)  # where no worker of the running cluster stands
    manifest = ingest(["good.h5ad"], store, **options)
    from ray.data import DataContext

    bars = DataContext.get_current().enable_progress_bars
    negative = counts(150, 2).astype(np.float32)
    negative.data[-1] = -3
    bad = write_source(tmp_path / "later.h5ad", negative, GENES)
    said = r"^later\.h5ad: row 149 .* has the value -3; counts cannot be negative\.$"
    with (
        pytest.warns(UserWarning, match="the same command goes on from there"),
        pytest.raises(DataError, match=said),
    ):
        ingest([good, bad], store, **options)
    assert open_store(store).manifest == manifest
    assert DataContext.get_current().enable_progress_bars == bars

    work = tmp_path / ".store.partial"
    (part,) = work.glob("parts/*")
    write_source(tmp_path / "later.h5ad", counts(150, 2), GENES)
    kept = part.stat().st_ino
    steps: list[tuple[str, int, int]] = []

    def progress(*step: Any) -> None:
        steps.append(step)
        if step[0] == "write shards":
            assert part.stat().st_ino == kept

    ingest([good, bad], store, **options, progress=progress)
    assert [step for step in steps if step[0] == "read cells"] == [("read cells", 300, 300)]
    assert not work.exists()


@pytest.mark.usefixtures("ray_local")
def test_leftovers_of_another_ingest_are_not_used(
    tmp_path: Path, vocabulary: str, write_source: WriteSource
) -> None:
    source = write_source(tmp_path / "a.h5ad", counts(60, 1), GENES)
    store, options = tmp_path / "store", {"vocab": vocabulary, **OPTIONS}

    def leave_something() -> None:
        with killed_after(3), warnings.catch_warnings(), suppress(Killed):
            warnings.simplefilter("ignore")
            ingest([source], store, **options)
        assert list((tmp_path / ".store.partial").glob("parts/*"))

    leave_something()
    with pytest.warns(UserWarning, match="its sources or options were others"):
        ingest([source], store, **options, seed=1)
    assert open_store(store).manifest["seed"] == 1
    leave_something()
    ingest([source], store, **options, seed=2, fresh=True)
    assert open_store(store).manifest["seed"] == 2
    leave_something()
    write_source(tmp_path / "a.h5ad", counts(70, 1), GENES)
    with pytest.warns(UserWarning, match="its sources or options were others"):
        assert ingest([source], store, **options)["cells"] == 70

    leave_something()
    with (
        pytest.warns(UserWarning, match="had left was removed"),
        pytest.raises(DataError, match=r"every one of the 70"),
    ):
        ingest([source], store, **{**options, "min_genes": 400})
    assert not (tmp_path / ".store.partial").exists()
