"""Choose tiles by the clock: of the candidates that compile without spills and fit, the one that takes the least time.

A kernel's own script (``tune_attention``, ``tune_favor``) says which entries its tables have and what each entry's tile
is used by; here is the search, its clock, and how entries are written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import MISSING, dataclass, fields
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

import torch

from cellfoundry_bench.compiled import Resources, compile_launch
from cellfoundry_bench.errors import BenchError
from cellfoundry_bench.kernels.timing import Work, median_device_seconds
from cellfoundry_kernels.launch import Launch, capability_of

T = TypeVar("T")
Clock = Callable[[Work], float]
"""Seconds of one call."""
SHORTLIST = 24
CAPABILITIES = {80: "A100", 90: "H100 or H200"}
"""Devices that the tables have entries for."""


@dataclass(frozen=True)
class Use(Generic[T]):
    """One launch that takes an entry's tile.

    Attributes:
        launch: what is compiled; from this module's callers a partial of a function, which other processes can be sent.
        work: what is timed.
    """

    launch: Callable[[T], Launch]
    work: Callable[[T], Work]


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One entry of a table.

    Attributes:
        name: what the caller knows it by.
        candidates: the tiles to try.
        rows: of a tile, that a program owns or walks over at a time.
        uses: all that the chosen tile will be used by.
    """

    name: str
    candidates: list[T]
    rows: Callable[[T], int]
    uses: list[Use[T]]


def search(entry: Entry[T], compiled: Callable[[Launch], Resources], clock: Clock) -> list[tuple[float, T]]:
    """Seconds of one call of every use, and the tile, the fastest first.

    Timed are the ``SHORTLIST`` candidates whose blocks keep the most rows of a multiprocessor in flight, of those that
    in every use compile without spills and fit.

    Raises:
        BenchError: none fits.
    """
    fitting = []
    for tile in entry.candidates:
        used = [compiled(use.launch(tile)) for use in entry.uses]
        if all(one.fits for one in used):
            fitting.append((min(one.blocks for one in used) * entry.rows(tile), tile))
    if not fitting:
        raise BenchError(f"{entry.name}: none of {len(entry.candidates)} tiles fits: add smaller candidates.")
    fitting.sort(key=lambda pair: -pair[0])
    timed = [(sum(clock(use.work(tile)) for use in entry.uses), tile) for _, tile in fitting[:SHORTLIST]]
    return sorted(timed, key=lambda pair: pair[0])


def fastest(entries: Sequence[Entry[T]], capability: int) -> dict[str, T]:
    """By name, the tile of each entry that is fastest on this GPU; each is told on stderr as it is found."""
    compile_all(entries, capability)
    found = {}
    for entry in entries:
        timed = search(
            entry,
            lambda launch: compile_launch(launch, capability),
            lambda work: median_device_seconds(work, "cuda"),
        )
        seconds, found[entry.name] = timed[0]
        told = f"{entry.name}: {tile_text(found[entry.name])}, {seconds * 1e6:.1f} us, the best of {len(timed)} timed"
        print(f"{told} of {len(entry.candidates)}", file=sys.stderr, flush=True)
    return found


def compile_all(entries: Sequence[Entry[T]], capability: int) -> None:
    """Compile every candidate, on all processors, into triton's cache on disk, where the search finds them."""
    jobs = [
        (use.launch, tile, capability) for entry in entries for use in entry.uses for tile in entry.candidates
    ]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for done, _ in enumerate(pool.map(_compile, jobs), start=1):
            print(f"\rcompiled {done} of {len(jobs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _compile(job: tuple[Callable[[Any], Launch], Any, int]) -> None:
    launch, tile, capability = job
    compile_launch(launch(tile), capability)


def tile_text(tile: Any) -> str:
    """A tile as the tables write it: fields with a default by name, where they differ from it."""
    given = [repr(getattr(tile, field.name)) for field in fields(tile) if field.default is MISSING]
    given += [
        f"{field.name}={value!r}"
        for field in fields(tile)
        if field.default is not MISSING and (value := getattr(tile, field.name)) != field.default
    ]
    return f"{type(tile).__name__}({', '.join(given)})"


def by_head_dim(tiles: Mapping[int, Any]) -> str:
    """Tiles of one row of a table."""
    return "{" + ", ".join(f"{head_dim}: {tile_text(tile)}" for head_dim, tile in tiles.items()) + "}"


def print_table(table: Callable[[int], str]) -> None:
    """What a tuning script does: print ``table(capability)``, or say why that cannot be and exit with 2."""
    try:
        print(table(tunable_capability()))
    except BenchError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def tunable_capability() -> int:
    """Compute capability of this machine's GPU; BenchError where it has none, or one without entries of its own."""
    if not torch.cuda.is_available():
        raise BenchError(
            "tiles are chosen by timing kernels and this machine has no NVIDIA GPU: run this on one."
        )
    capability = capability_of(torch.device("cuda"))
    if capability not in CAPABILITIES:
        known = ", ".join(f"{name} (sm_{number})" for number, name in CAPABILITIES.items())
        raise BenchError(
            f"this GPU is sm_{capability}, and the tables have entries for {known}: run this on one."
        )
    return capability
