"""Rows say honestly whether a bar is met; comparisons alternate and divide the right way round."""

from __future__ import annotations

import pytest

from cellfoundry_bench.measure import Comparison, compare, cpu_clock, median_seconds
from cellfoundry_bench.results import Row


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row("speed", 10.0, "cells/s", "peer", 5.0, 2.0, bar=1.5), True),
        (Row("speed", 10.0, "cells/s", "peer", 9.0, 1.1, bar=1.5), False),
        (Row("size", 0.9, "bytes", bar=1.0, bar_is="at most"), True),
        (Row("size", 1.1, "bytes", bar=1.0, bar_is="at most"), False),
        (Row("on CUDA", None, "TFLOP/s", "peer", bar=1.5), "not measured"),
        (Row("on CUDA", None, "TFLOP/s"), "not measured"),
        (Row("fact", 3.0, "s"), None),
    ],
)
def test_met_follows_the_bar(row: Row, met: object) -> None:
    assert row.met == met
    assert row.to_dict()["met"] == met


def test_bar_is_written_with_its_side() -> None:
    assert Row("a", 1.0, "s", bar=2.0, bar_is="at most").to_dict()["bar"] == {"at most": 2.0}
    assert Row("a", 1.0, "s").to_dict()["bar"] is None


def test_ratio_above_one_means_ours_is_faster() -> None:
    timed = Comparison(ours=[1.0, 2.0, 1.0], peer=[4.0, 4.0, 2.0])
    assert timed.ratio == 4.0
    assert timed.ratio_range == (2.0, 4.0)
    row = timed.rate_row("read", 100, "cells/s", "peer", bar=2.0)
    assert (row.value, row.peer_value, row.met) == (100.0, 25.0, True)


def test_rounds_alternate_after_one_warm_call_each() -> None:
    calls: list[str] = []
    timed = compare(lambda: calls.append("ours"), lambda: calls.append("peer"), rounds=3)
    assert calls == ["ours", "peer"] * 4
    assert len(timed.ours) == len(timed.peer) == 3


def test_cpu_clock_counts_work() -> None:
    def work() -> None:
        sum(range(2_000_000))

    assert median_seconds(work, rounds=3, clock=cpu_clock) > 0
