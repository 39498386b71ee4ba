"""Cells that come again are answered from memory, with the same numbers and within the bytes allowed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scraped import scraped

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client import Client
from cellfoundry_serving.endpoint.cache import EmbeddingCache, cell_keys
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.pieces import Conventions
from cellfoundry_serving.endpoint.server import running
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.export.check import random_cells

T4 = Conventions("all", "t4")


def test_the_least_recently_used_goes_first() -> None:
    row = np.arange(100, dtype=np.float32)
    one = row.nbytes + 320
    cache = EmbeddingCache(max_bytes=2 * one)
    cache.put(b"a", row)
    cache.put(b"b", row + 1)
    assert cache.get(b"a") is not None
    cache.put(b"c", row + 2)
    assert cache.get(b"b") is None
    np.testing.assert_array_equal(cache.get(b"a"), row)
    np.testing.assert_array_equal(cache.get(b"c"), row + 2)
    cache.put(b"d", np.zeros(1000, np.float32))  # larger than all of the cache
    assert cache.bytes == 2 * one


@pytest.mark.parametrize("width", [8, 3072])
def test_the_memory_held_is_what_is_counted(width: int) -> None:
    batch = np.ones((64, width), np.float32)
    cache = EmbeddingCache(max_bytes=2_000_000)
    tracemalloc.start()
    try:
        for number in range(10_000):
            cache.put(number.to_bytes(16, "little"), batch[number % 64].copy())
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1_900_000 < cache.bytes <= 2_000_000
    assert held < 1.15 * cache.bytes


def test_keys_differ_where_an_embedding_may() -> None:
    cells = random_cells(400, (5, 5, 9, 0), 0)
    more = CellBatch(cells.indptr, cells.gene_ids, cells.counts + 1, cells.row_ids)
    others = CellBatch(cells.indptr, cells.gene_ids + 1, cells.counts, cells.row_ids)
    keys = [
        *cell_keys(cells, T4, b"model"),
        *cell_keys(more, T4, b"model")[:3],
        *cell_keys(others, T4, b"model")[:3],
        *cell_keys(cells, T4, b"another"),
        *cell_keys(cells, Conventions("max", "t4"), b"model"),
        *cell_keys(cells, Conventions("all", "t5"), b"model"),
    ]
    assert len(set(keys)) == len(keys)
    rows = np.array([2, 0])
    assert cell_keys(cells.select(rows), T4, b"model") == [
        cell_keys(cells, T4, b"model")[row] for row in rows
    ]


def test_cells_that_come_again_in_other_company_are_not_computed(engine: Engine, cells: CellBatch) -> None:
    expected = engine.encode(cells)
    with running(engine) as url, Client(url) as client:
        for rows in ([0, 1, 2], [2, 5, 0], [5, 2, 1], [3, 3]):
            got = client.embed(cells.select(np.array(rows)))
            np.testing.assert_allclose(got, expected[rows], atol=1e-4, rtol=0)
        np.testing.assert_allclose(
            client.embed(cells.select(np.array([2])), pool="max"),
            engine.encode(cells.select(np.array([2])), pool="max"),
            atol=1e-4,
            rtol=0,
        )
        # 1: all three are new; 2: one; 3: none; 4: twice in one request is twice new; then another pool.
        assert scraped(url, "cellfoundry_cache_misses_total") == 7
        assert scraped(url, "cellfoundry_cache_hits_total") == 5
        assert scraped(url, "cellfoundry_cache_bytes") == 5 * (128 * 4 + 320) + 32 * 4 + 320


def test_no_cache_keeps_nothing(engine: Engine, cells: CellBatch) -> None:
    with running(engine, limits=Limits(cache_bytes=0)) as url, Client(url) as client:
        for _ in range(2):
            client.embed(cells)
        assert scraped(url, "cellfoundry_cache_hits_total") == 0
        assert scraped(url, "cellfoundry_batch_tokens_count") == 2
