"""First batch, resuming, memory of a reader, the share of a rank, and batches of a token budget over ranks."""

from __future__ import annotations

import shutil
import time
from statistics import median

from cellfoundry_bench.atlas.bench import Bench, rows_or_reason
from cellfoundry_bench.atlas.reading import BATCH_CELLS, OURS, SAME_WINDOW, peak_gb
from cellfoundry_bench.atlas.repeated import repeat_store
from cellfoundry_bench.peers.driven import touch_files
from cellfoundry_bench.peers.environments import ANNBATCH
from cellfoundry_bench.results import Curve, Row

TOKENS, RANKS = 262_144, 8
READING_RANKS = (1, 2, 4, 8)
RESUME_AT = (0.1, 0.5, 0.9)


def first_batch_rows(bench: Bench) -> list[Row]:
    """From a closed store to the first batch, in a process that has read before and from none at all."""
    touch_files([bench.store()])
    settings = {"path": str(bench.store()), "batch_cells": BATCH_CELLS, **OURS}
    began = time.perf_counter()
    with bench.ours() as ours:
        ours.do("open", **settings)
        cold = time.perf_counter() - began
        warm = median(ours.do("open", **settings)["wall_s"] for _ in range(bench.settings.rounds))
    return [
        Row(
            "first batch after open",
            warm,
            "s",
            bar=0.5,
            bar_is="at most",
            note=f"packages imported; {_peer_note(bench)}",
        ),
        Row(
            "first batch from a cold process",
            cold,
            "s",
            note="interpreter, imports and compiled kernels included",
        ),
    ]


def _peer_note(bench: Bench) -> str:
    """annbatch's own time to its first batch, or why there is none."""
    taken: list[float] = []

    def measure() -> list[Row]:
        settings = {"path": str(bench.converted(ANNBATCH, bench.atlas.files)), "batch_cells": BATCH_CELLS}
        with bench.peer(ANNBATCH) as peer:
            opened = [peer.do("open", **settings, **SAME_WINDOW) for _ in range(bench.settings.rounds + 1)]
        taken.extend(answer["wall_s"] for answer in opened[1:])
        return []

    reason = rows_or_reason(measure, Row("", None, ""))
    return reason[0].note if reason else f"{ANNBATCH.name}, chunk 64 x 128: {median(taken):.2f} s"


def resume_rows(bench: Bench) -> tuple[list[Row], list[Curve]]:
    """Chunks decoded and seconds from a saved state to the next batch, at points of an epoch."""
    touch_files([bench.store()])
    with bench.ours() as ours:
        rounds = [
            ours.do(
                "resume", path=str(bench.store()), batch_cells=BATCH_CELLS, batches=[10], shares=RESUME_AT
            )
            for _ in range(bench.settings.rounds + 1)
        ][1:]
    points = rounds[0]["points"]
    batches = [point["batch"] for point in points]
    chunks = [point["chunks"] for point in points]
    seconds = [median(one["points"][i]["seconds"] for one in rounds) for i in range(len(points))]
    listed = "; ".join(
        f"batch {b}: {c} chunks, {s:.3f} s" for b, c, s in zip(batches, chunks, seconds, strict=True)
    )
    note = f"of {rounds[0]['batches']:,} batches; {listed}"
    rows = [
        Row("resume, seconds to the next batch, slowest point", max(seconds), "s", note=note),
        Row(
            "resume, chunks decoded, most over fewest points",
            max(chunks) / max(1, min(chunks)),
            "times",
            bar=2.0,
            bar_is="at most",
            note="one window, or two where the batch straddles them, and the one read ahead: whatever the batch",
        ),
    ]
    lines = {"to the next batch": [(float(b), s) for b, s in zip(batches, seconds, strict=True)]}
    return rows, [Curve("Resuming in an epoch", "batches already handed out", "seconds", lines)]


def memory_rows(bench: Bench) -> tuple[list[Row], list[Curve]]:
    """Peak memory and first batch of a process that reads stores of growing size, the same shards listed again."""
    rows, memory, first = [], [], []
    for times in (1, *bench.settings.repeats):
        store = bench.store() if times == 1 else repeat_store(bench.store(), times, bench.folder / "repeated")
        touch_files([bench.store()])
        with bench.ours() as ours:
            opened = ours.do("open", path=str(store), batch_cells=BATCH_CELLS, **OURS)
            # Before the store is opened again: a run of training opens it once.
            peak = peak_gb([ours.do("read", cells=2 * bench.atlas.cells)])
            again = ours.do("open", path=str(store), batch_cells=BATCH_CELLS, **OURS)
        cells = bench.atlas.cells * times
        listed = "" if times == 1 else f"the same shards {times} times, as links; "
        note = (
            f"{listed}first batch {again['wall_s']:.2f} s after open, {opened['wall_s']:.2f} s the first time"
        )
        what = f"peak memory of a reader, {cells:,} cells"
        rows.append(Row(what, peak, "GB", bar=0.8, bar_is="at most", note=note))
        memory.append((float(cells), peak))
        first.append((float(cells), again["wall_s"]))
        if times > 1:
            shutil.rmtree(store)
    curve = Curve(
        "Reading stores of growing size",
        "cells in the store",
        "GB, seconds",
        {"peak memory, GB": memory, "first batch, s": first},
    )
    return rows, [curve]


def rank_rows(bench: Bench) -> tuple[list[Row], list[Curve]]:
    """CPU time that one of R ranks spends on an epoch: rows are spread over ranks, so all of them read all chunks."""
    touch_files([bench.store()])
    line = []
    with bench.ours() as ours:
        for ranks in READING_RANKS:
            share = bench.atlas.cells // ranks
            settings = {"batch_cells": BATCH_CELLS, "rank": 0, "world_size": ranks}
            ours.do("open", path=str(bench.store()), **settings, **OURS)
            taken = [ours.do("read", cells=share)["cpu_s"] for _ in range(bench.settings.rounds + 1)][1:]
            line.append((float(ranks), median(taken) * 1e6 / bench.atlas.cells))
    rows = [
        Row(f"one of {ranks:.0f} ranks, an epoch", cost, "CPU-microseconds a cell of the store")
        for ranks, cost in line
    ]
    unit = "CPU-microseconds a cell of the store"
    return rows, [Curve("What one rank of R spends on an epoch", "ranks", unit, {"each rank": line})]


def token_rows(bench: Bench) -> list[Row]:
    """How full batches of a token budget are, and how even over ranks."""
    touch_files([bench.store()])
    with bench.ours() as ours:
        answer = ours.do("token_batches", path=str(bench.store()), tokens=TOKENS, ranks=RANKS)
    note = f"{answer['steps']:,} steps of {RANKS} ranks, {TOKENS:,} tokens a batch"
    return [
        Row("token budget, share filled", answer["fill"], "of the budget", note=note),
        Row("token budget, share filled of the emptiest batch", answer["least_fill"], "of the budget"),
        Row(
            "token budget, fullest rank over the mean", answer["balance"], "times", note="mean over the steps"
        ),
    ]
