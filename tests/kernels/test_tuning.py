"""The search for tiles: what it leaves out, what it picks, and tables that can be pasted. Here the clock is a list."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest

pytest.importorskip("triton", reason="triton exists on Linux only")

import torch

from cellfoundry_bench import tune_attention, tune_favor
from cellfoundry_bench.compiled import compile_launch
from cellfoundry_bench.errors import BenchError
from cellfoundry_bench.tuning import Entry, Use, search, tunable_capability
from cellfoundry_kernels.favor import tiles as favor
from cellfoundry_kernels.favor.published import launch_with
from cellfoundry_kernels.varlen import tiles as varlen

NARROW, SPILLING = favor.Tile(16, 64, 4, 2, hoists=False), favor.Tile(512, 64, 4, 2, hoists=False)


def queries_entry(candidates: list[favor.Tile], timed: list[favor.Tile]) -> Entry[favor.Tile]:
    """The queries of the smallest decoder; what the search wants timed is noted."""
    launch = partial(
        launch_with, name="queries", features=44, head_dim=16, dtype=torch.bfloat16, capability=90
    )

    def work(tile: favor.Tile) -> Callable[[], None]:
        return lambda: timed.append(tile)

    return Entry("queries 16", candidates, lambda tile: tile.positions, [Use(launch, work)])


def test_tiles_that_spill_are_never_timed_and_the_fastest_comes_first() -> None:
    in_use = favor.tile_for("queries", torch.bfloat16, 90, 16)
    seconds, timed = iter([3.0, 2.0]), list[favor.Tile]()

    def clock(work: Callable[[], object]) -> float:
        work()
        return next(seconds)

    entry = queries_entry([NARROW, SPILLING, in_use], timed)
    compiled = partial(compile_launch, capability=90)
    assert search(entry, compiled, clock) == [(2.0, NARROW), (3.0, in_use)]
    assert timed == [in_use, NARROW]  # the most positions in flight first
    with pytest.raises(BenchError, match="queries 16: none of 1 tiles fits"):
        search(queries_entry([SPILLING], timed), compiled, clock)


def test_a_tile_of_several_uses_is_judged_by_their_sum() -> None:
    entry = queries_entry([NARROW, favor.Tile(32, 64, 4, 2, hoists=False)], [])
    twice = Entry(entry.name, entry.candidates, entry.rows, entry.uses * 2)
    seconds = iter([1.0, 5.0, 3.0, 2.0])
    found = search(twice, partial(compile_launch, capability=90), lambda work: next(seconds))
    assert [spent for spent, _ in found] == [5.0, 6.0]


@pytest.mark.parametrize("capability", [80, 90])
def test_attention_prints_its_tables_as_the_source_has_them(capability: int) -> None:
    in_use = {
        entry.name: varlen.SHORT
        if entry.name == "short"
        else varlen.SINGLE[int(entry.name.split()[1])]
        if entry.name.startswith("single")
        else varlen.HALF[capability, entry.name.split()[0]][int(entry.name.split()[1])]  # type: ignore[index]
        for entry in tune_attention.entries()
    }
    source = inspect.getsource(varlen).splitlines()
    printed = tune_attention.table_text(in_use, capability).splitlines()
    assert len(printed) == 5
    assert set(printed) <= set(source)


@pytest.mark.parametrize("capability", [80, 90])
def test_favor_prints_the_rows_of_its_tables(capability: int) -> None:
    names = [entry.name.split() for entry in tune_favor.entries(capability)]
    in_use = {
        f"{table} {kernel} {head_dim}": favor.tile_for(
            kernel,  # type: ignore[arg-type]
            tune_favor.DTYPES[table],
            capability,
            int(head_dim),
        )
        for table, kernel, head_dim in names
    }
    printed = eval("{" + tune_favor.table_text(in_use, capability) + "}", {"Tile": favor.Tile})
    of_device = {key: tiles for key, tiles in favor.BFLOAT16.items() if key[0] == capability}
    assert printed == of_device | favor.SINGLE


def test_every_tile_in_use_is_among_the_candidates() -> None:
    for capability in (80, 90):
        for entry in tune_favor.entries(capability):
            table, kernel, head_dim = entry.name.split()
            tile = favor.tile_for(kernel, tune_favor.DTYPES[table], capability, int(head_dim))  # type: ignore[arg-type]
            assert tile in entry.candidates
    assert varlen.SHORT in tune_attention.SHORT_CANDIDATES
    assert set(varlen.SINGLE.values()) <= set(tune_attention.SINGLE_CANDIDATES)
    assert {tile for row in varlen.HALF.values() for tile in row.values()} <= set(
        tune_attention.HALF_CANDIDATES
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
@pytest.mark.parametrize("script", ["tune_attention", "tune_favor"])
def test_without_a_gpu_one_sentence_says_so(script: str) -> None:
    with pytest.raises(BenchError) as refused:
        tunable_capability()
    command = [sys.executable, "-m", f"cellfoundry_bench.{script}"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == f"{refused.value}\n"
    assert "no NVIDIA GPU" in finished.stderr
