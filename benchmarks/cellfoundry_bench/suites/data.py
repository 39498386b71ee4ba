"""The data layer at atlas scale: ingest, store and loader against the peers, each in its own environment.

Every side runs in a process of its own, driven alike, so that CPU-seconds (all threads and children) and peak
memory are measured alike. Rates are of shuffled sparse batches (gene ids and counts) from a warm page cache.
Size and what to compare with are set by the environment, see ``cellfoundry_bench.atlas.settings``.
"""

from __future__ import annotations

from collections.abc import Callable

from cellfoundry_bench.atlas.bench import Bench, bench, rows_or_reason
from cellfoundry_bench.atlas.cells import synthetic_atlas
from cellfoundry_bench.atlas.conversion import conversion_rows
from cellfoundry_bench.atlas.opening import first_batch_rows, memory_rows, rank_rows, resume_rows, token_rows
from cellfoundry_bench.atlas.reading import REAL_WHAT, own_rows, reading_rows, real_reading_rows
from cellfoundry_bench.atlas.settings import Settings
from cellfoundry_bench.atlas.sizes import size_rows
from cellfoundry_bench.peers.environments import ANNBATCH
from cellfoundry_bench.results import Curve, Row, SuiteResult
from cellfoundry_data import vocabulary


def run() -> SuiteResult:
    """Measure at the size that the environment asks for."""
    settings = Settings.from_environment()
    genes = list(vocabulary.load("scfoundation").genes)
    with bench(settings, synthetic_atlas(settings.cells, genes)) as made:
        return measure(made)


def measure(bench: Bench) -> SuiteResult:
    """All parts on one atlas; a part that cannot be measured leaves a row that says why."""
    curves: list[Curve] = []

    def with_curves(part: Callable[[Bench], tuple[list[Row], list[Curve]]]) -> list[Row]:
        rows, more = part(bench)
        curves.extend(more)
        return rows

    parts: list[tuple[Callable[[], list[Row]], Row]] = [
        (lambda: reading_rows(bench), Row("batches", None, "cells/CPU-s")),
        (lambda: real_reading_rows(bench), Row(REAL_WHAT, None, "non-zeros/CPU-s", ANNBATCH.name)),
        (lambda: size_rows(bench), Row("bytes per non-zero", None, "bytes")),
        (
            lambda: with_curves(memory_rows),
            Row("peak memory of a reader", None, "GB", bar=0.8, bar_is="at most"),
        ),
        (
            lambda: first_batch_rows(bench),
            Row("first batch after open", None, "s", bar=0.5, bar_is="at most"),
        ),
        (lambda: with_curves(resume_rows), Row("resume", None, "s")),
        (lambda: own_rows(bench), Row("our batches", None, "cells/CPU-s")),
        (lambda: with_curves(rank_rows), Row("one of 8 ranks, an epoch", None, "CPU-microseconds a cell")),
        (lambda: token_rows(bench), Row("token budget, share filled", None, "of the budget")),
    ]
    # First, because it leaves its store behind, and its row last, where a reader looks for it after reading.
    converted = rows_or_reason(lambda: conversion_rows(bench), Row("ingest", None, "cells/CPU-s", bar=2.0))
    bench.make_stores()
    rows = [row for part, unmeasured in parts for row in rows_or_reason(part, unmeasured)]
    return SuiteResult([*rows, *converted], curves)
