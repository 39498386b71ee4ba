"""Ingest on a small disk, and readers while a writer is at work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from cellfoundry_data.errors import DataError
from cellfoundry_data.ingest import ingest
from cellfoundry_data.store import verify
from cellfoundry_data.vocabulary import Vocabulary

GENES = [f"GENE{number}" for number in range(400)]
SOAKS = Path(__file__).resolve().parents[2] / "benchmarks" / "soak"

WriteSource = Callable[..., str]


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own of this size."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system, which this user or container has not")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def call(tmp_path: Path, write_source: WriteSource) -> dict[str, Any]:
    """2,000 cells with 500,000 entries: 1 MB of runs and 0.5 MB of store."""
    Vocabulary(tuple(GENES)).write_tsv(tmp_path / "genes.tsv")
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(1, (2000, 400)))
    source = write_source(tmp_path / "cells.h5ad", counts, GENES)
    return {"sources": [source], "vocab": str(tmp_path / "genes.tsv"), "min_genes": 1, "cells_per_shard": 200}


def test_a_disk_that_is_clearly_too_small_is_refused_before_any_work(
    call: dict[str, Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 500) as disk:
        with pytest.raises(
            DataError,
            match=r"^the disk of .* is too small .* about 1\.5 MB more .* [0-9.]+ kB are free; make space",
        ):
            ingest(store=disk / "store", **call)
        assert not list(disk.iterdir())


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("kilobytes", [1000, 1600])
def test_a_disk_that_fills_up_leaves_no_store_and_the_ingest_goes_on_when_there_is_space(
    kilobytes: int, call: dict[str, Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        with (
            pytest.warns(UserWarning, match="the same command goes on")
            if kilobytes > 1300
            else nullcontext(),
            pytest.raises(
                DataError, match=r"^the disk of .* is too small .* more are needed .* are free; make space"
            ),
        ):
            ingest(store=disk / "store", **call)
        assert not (disk / "store").exists()
        done = list(disk.glob(".store.partial/parts/*"))
        assert len(done) == (kilobytes > 1300)

        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        ingest(store=disk / "store", **call)
        ingest(store=tmp_path / "roomy", **call)
        assert not verify(disk / "store").bad
        for path in (path for path in (tmp_path / "roomy").rglob("*") if path.is_file()):
            assert (disk / "store" / path.relative_to(tmp_path / "roomy")).read_bytes() == path.read_bytes()
        assert [path.name for path in disk.iterdir()] == ["store"]


def test_two_readers_see_whole_stores_while_a_writer_replaces_and_appends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SOAKS / "readers_and_writer.py"), "--versions", "3"],
        check=True,
        timeout=120,
        capture_output=True,
    )
    found = json.loads(done.stdout)
    assert (found["versions_seen_by_each"], found["mixes"]) == (3, 0)
    assert found["stores_written"] >= 3
