"""Non-zeros and cells per CPU-second of shuffled batches: ours and a peer in turn, the page cache warm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import h5py
import numpy as np

from cellfoundry_bench.atlas.bench import SYNTHETIC, Bench, rows_or_reason
from cellfoundry_bench.measure import Comparison
from cellfoundry_bench.peers.driven import Driven, alternate, touch_files
from cellfoundry_bench.peers.environments import ANNBATCH, SCDATASET, SCDL, SOMA, NotMeasured, Peer
from cellfoundry_bench.results import Row

BATCH_CELLS = 128
OURS = {"window_chunks": 128}
SOMA_CELLS = 20_000
REAL_ROUND_CELLS = 100_000


@dataclass(frozen=True)
class Contest:
    """One peer at one setting.

    Attributes:
        peer: the peer.
        what: its setting, in words.
        open: settings of its ``open``.
        note: what a reader must know.
        bar: the ratio to reach.
        round_cells: cells of a turn, a whole number of its fetches; a whole epoch where None.
        prepare: settings of its conversion.
        files: files of the atlas that it holds, from the first; all where None.
        cells: cells that it holds; all of these files where None.
        profile: of our store.
    """

    peer: Peer
    what: str
    open: dict[str, Any]
    note: str
    bar: float | None = 10.0
    round_cells: int | None = None
    prepare: dict[str, Any] = field(default_factory=dict)
    files: int | None = None
    cells: int | None = None
    profile: str = "compact"


SAME_WINDOW = {"chunk_size": 64, "preload_nchunks": 128}
CONTESTS = (
    Contest(
        ANNBATCH,
        "annbatch, 64 x 128",
        SAME_WINDOW,
        "chunk 64, preload 128: the same chunk and window",
        bar=2.0,
    ),
    Contest(
        ANNBATCH,
        "annbatch, 64 x 128, our fast profile",
        SAME_WINDOW,
        "the same chunk and window; our store not compressed",
        bar=None,
        profile="fast",
    ),
    Contest(
        ANNBATCH,
        "annbatch, 512 x 32",
        {"chunk_size": 512, "preload_nchunks": 32},
        "chunk 512, preload 32: its best setting",
        bar=1.3,
    ),
    Contest(
        SCDATASET,
        "scDataset, 64 x 64",
        {"block_size": 64, "fetch_factor": 64},
        "block 64, fetch factor 64, on the .h5ad files, kept sparse",
        round_cells=32_768,
    ),
    Contest(
        SCDL,
        "SCDL, sparse collate",
        {"collate": True},
        "first file; as its README says, which leaves torch its threads: they spin between the collate's small steps",
        round_cells=16_384,
        files=1,
    ),
    Contest(
        SCDL,
        "SCDL, sparse collate, torch with one thread",
        {"collate": True, "threads": 1},
        "first file; its README sets no threads, so no bar",
        bar=None,
        round_cells=16_384,
        files=1,
    ),
    Contest(
        SCDL,
        "SCDL, sparse collate, torch with one thread, our fast profile",
        {"collate": True, "threads": 1},
        "first file; neither side compresses",
        bar=None,
        round_cells=16_384,
        files=1,
        profile="fast",
    ),
    Contest(
        SCDL,
        "SCDL, no collate",
        {"collate": False},
        "first file; hands out a list of single cells and not a batch, so no bar",
        bar=None,
        round_cells=65_536,
        files=1,
    ),
    Contest(
        SOMA,
        "TileDB-SOMA-ML",
        {},
        f"its defaults, first {SOMA_CELLS:,} cells",
        prepare={"cells": SOMA_CELLS},
        files=1,
        cells=SOMA_CELLS,
    ),
)


def reading_rows(bench: Bench) -> list[Row]:
    """One row a contest."""
    rows: list[Row] = []
    for contest in CONTESTS:
        unmeasured = Row(_what(contest), None, "cells/CPU-s", contest.peer.name, bar=contest.bar)
        rows += rows_or_reason(partial(_contest_rows, bench, contest), unmeasured)
    return rows


def _contest_rows(bench: Bench, contest: Contest) -> list[Row]:
    """Ours and the peer in turn, the peer shown to hand out what its source holds."""
    store, files = bench.store(profile=contest.profile), bench.sources[SYNTHETIC][: contest.files]
    converted = bench.converted(contest.peer, files, **contest.prepare)
    touch_files([store, *([converted] if converted.exists() else files)])
    source = content_of(files, contest.cells)
    cells = min(contest.round_cells or source["cells"], source["cells"])
    opening = contest.open | ({"sources": files} if contest.peer is SCDATASET else {})
    with bench.ours() as ours, bench.peer(contest.peer) as peer:
        ours.do("open", path=str(store), batch_cells=BATCH_CELLS, **OURS)
        peer.do("open", path=str(converted), batch_cells=BATCH_CELLS, **opening)
        timed, ours_says, peer_says = alternate(ours, peer, bench.atlas.cells, cells, bench.settings.rounds)
        check_content(peer.do("content"), source, peer)
    note = f"{contest.note}; {_wall_and_memory(ours_says, peer_says)}; an epoch of the peer adds up to its source"
    return [timed.rate_row(_what(contest), 1, "cells/CPU-s", peer.name, bar=contest.bar, note=note)]


def real_reading_rows(bench: Bench) -> list[Row]:
    """Ours and annbatch in turn on the real file with most non-zeros.

    Ours holds the vocabulary's genes and annbatch all of the file's, so the rate is of non-zeros.
    """
    real = [name for name in bench.sources if name != SYNTHETIC and (name, "compact") not in bench.reasons]
    if not real:
        raise NotMeasured("no real file could be ingested")
    name = max(
        real, key=lambda name: bench.store(name).stat().st_size and content_of(bench.sources[name])["nnz"]
    )
    store, files = bench.store(name), bench.sources[name]
    converted = bench.converted(ANNBATCH, files)
    touch_files([store, converted])
    with bench.ours() as ours, bench.peer(ANNBATCH) as peer:
        ours.do("open", path=str(store), batch_cells=BATCH_CELLS, **OURS)
        peer.do("open", path=str(converted), batch_cells=BATCH_CELLS, **SAME_WINDOW)
        cells = min(REAL_ROUND_CELLS, bench.atlas.cells)
        timed, ours_says, peer_says = alternate(ours, peer, cells, cells, bench.settings.rounds)
        contents = [ours.do("content"), peer.do("content")]
    check_content(contents[1], content_of(files), peer)
    ours_nnz, peer_nnz = (content["nnz"] / content["cells"] for content in contents)
    timed = Comparison(
        [second / ours_nnz for second in timed.ours], [second / peer_nnz for second in timed.peer]
    )
    note = (
        f"{name}: {contents[0]['cells']:,} cells of {ours_nnz:,.0f} against {peer_nnz:,.0f} non-zeros, ours aligned to "
        f"the vocabulary; {_wall_and_memory(ours_says, peer_says)}"
    )
    return [timed.rate_row(REAL_WHAT, 1, "non-zeros/CPU-s", peer.name, note=note)]


REAL_WHAT = "batches of real cells against annbatch, 64 x 128"
OWN_KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("compact", "compact", {}),
    ("fast", "fast", {}),
    ("balanced cell types", "compact", {"weights": {"cell_type": "balanced"}}),
    ("with obs cell_type", "compact", {"obs_columns": ["cell_type"]}),
    ("token budget 262,144", "compact", {"batch_cells": None, "batch_tokens": 262_144}),
)


def own_rows(bench: Bench) -> list[Row]:
    """Our rate for each profile and kind of batch, without a peer."""
    rows = []
    with bench.ours() as ours:
        for kind, profile, settings in OWN_KINDS:
            what = f"our batches, {kind}"
            make = partial(_own_rows, bench, ours, what, profile, {"batch_cells": BATCH_CELLS} | settings)
            rows += rows_or_reason(make, Row(what, None, "cells/CPU-s"))
    return rows


def _own_rows(bench: Bench, ours: Driven, what: str, profile: str, settings: dict[str, Any]) -> list[Row]:
    store = bench.store(profile=profile)
    touch_files([store])
    ours.do("open", path=str(store), **settings, **OURS)
    turns = (bench.settings.rounds + 1) // 2  # whole epochs, and some kinds take a while
    rounds = [ours.do("read", cells=bench.atlas.cells) for _ in range(turns + 1)][1:]
    rate = median(answer["cells"] / answer["cpu_s"] for answer in rounds)
    note = f"{wall_rate(rounds):,.0f} cells/s of wall time"
    if "weights" not in settings:
        check_content(ours.do("content"), content_of(bench.atlas.files), ours)
        note += "; an epoch adds up to the source"
    return [Row(what, rate, "cells/CPU-s", note=note)]


def content_of(files: Sequence[str], cells: int | None = None) -> dict[str, Any]:
    """Cells, non-zeros and the sum of counts of CSR .h5ad files, or of the first ``cells`` of each."""
    content: dict[str, Any] = {"cells": 0, "nnz": 0, "molecules": 0.0}
    for path in files:
        with h5py.File(path) as file:
            indptr = file["X/indptr"][: None if cells is None else cells + 1]
            content["cells"] += len(indptr) - 1
            content["nnz"] += int(indptr[-1])
            content["molecules"] += float(file["X/data"][: indptr[-1]].sum(dtype=np.float64))
    return content


def check_content(handed_out: dict[str, Any], source: dict[str, Any], system: Driven) -> None:
    """NotMeasured if an epoch's cells, non-zeros and sum of counts are not the source's."""
    for quantity, amount in source.items():
        if handed_out[quantity] != amount:
            raise NotMeasured(
                f"{system.name} handed out {handed_out[quantity]:,} {quantity} in an epoch; the source has {amount:,}"
            )


def wall_rate(rounds: list[dict[str, Any]]) -> float:
    """Median cells per second of wall time."""
    return median(answer["cells"] / answer["wall_s"] for answer in rounds)


def peak_gb(rounds: list[dict[str, Any]]) -> float:
    """Largest resident memory of the process so far, in GB."""
    return float(rounds[-1]["peak_bytes"]) / 1e9


def _wall_and_memory(ours: list[dict[str, Any]], peer: list[dict[str, Any]]) -> str:
    return (
        f"{wall_rate(ours):,.0f} against {wall_rate(peer):,.0f} cells/s of wall time, "
        f"peak memory {peak_gb(ours):.2f} against {peak_gb(peer):.2f} GB"
    )


def _what(contest: Contest) -> str:
    return f"batches of {BATCH_CELLS} against {contest.what}"
