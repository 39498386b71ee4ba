"""Exact duplicates among cells: hashes of contents, and a search over sorted files, against a brute-force twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.ingest.duplicates import (
    CELLS_PER_RANGE,
    _range_of,
    content_hashes,
    find_duplicates,
    n_ranges,
    write_hashes,
)

N_GENES = 4
contents = st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.0]), min_size=N_GENES, max_size=N_GENES)


def as_batch(dense: list[list[float]]) -> CellBatch:
    values = np.array(dense, np.float32).reshape(-1, N_GENES)
    rows, genes = np.nonzero(values)
    indptr = np.searchsorted(rows, np.arange(len(values) + 1)).astype(np.int64)
    return CellBatch(
        indptr, genes.astype(np.int32), values[rows, genes], np.arange(len(values), dtype=np.int64)
    )


@settings(deadline=None)  # the first example compiles
@given(st.lists(contents, max_size=40))
def test_hashes_are_equal_exactly_where_cells_are(dense: list[list[float]]) -> None:
    hashes = content_hashes(as_batch(dense))
    assert hashes.shape == (len(dense), 2)
    assert hashes.dtype == np.uint64
    for half in hashes.T.tolist():
        for i, cell in enumerate(dense):
            assert [other == half[i] for other in half] == [other == cell for other in dense]


def test_hashes_do_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    cells = as_batch(rng.poisson(1.0, (50, N_GENES)).tolist())
    shuffled = rng.permutation(50)
    np.testing.assert_array_equal(content_hashes(cells.select(shuffled)), content_hashes(cells)[shuffled])


def test_no_two_of_many_near_cells_collide() -> None:
    """Cells of one entry, and all their sums of two: additive hashes must not cancel."""
    genes, counts = np.meshgrid(np.arange(300, dtype=np.int32), np.arange(1, 301, dtype=np.float32))
    singles = CellBatch(np.arange(90_001), genes.ravel(), counts.ravel(), np.arange(90_000))
    for half in content_hashes(singles).T:
        assert len(np.unique(half)) == 90_000
        sums = half[:1000, None] + half[None, :1000]
        assert len(np.unique(sums[np.triu_indices(1000)])) == 1000 * 1001 // 2


def brute_force(sources: list[list[list[float]]]) -> list[tuple[int, int]]:
    seen: set[tuple[float, ...]] = set()
    repeats = []
    for source, dense in enumerate(sources):
        for row, cell in enumerate(dense):
            if tuple(cell) in seen:
                repeats.append((source, row))
            seen.add(tuple(cell))
    return repeats


@settings(deadline=None, max_examples=60)
@given(
    sources=st.lists(st.lists(contents, max_size=12), min_size=1, max_size=4),
    ranges=st.integers(1, 5),
    blocks=st.integers(1, 5),
    data=st.data(),
)
def test_every_repeated_cell_is_found_once(
    sources: list[list[list[float]]],
    ranges: int,
    blocks: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("hashes")
    for source, dense in enumerate(sources):
        hashes = content_hashes(as_batch(dense))
        for block, rows in enumerate(np.array_split(np.arange(len(dense)), blocks)):
            write_hashes(folder / f"{source}-{block}.npy", hashes[rows], source, rows)
    files = data.draw(st.permutations(sorted(folder.iterdir())))
    found = [find_duplicates(files, ranges, number) for number in range(ranges)]
    for of_sources, of_rows in found:
        pairs = list(zip(of_sources.tolist(), of_rows.tolist(), strict=True))
        assert pairs == sorted(pairs)
    together = np.concatenate([np.stack(pair) for pair in found], axis=1).T.tolist()
    assert sorted(map(tuple, together)) == brute_force(sources)


def test_half_a_hash_is_not_enough(tmp_path: Path) -> None:
    hashes = np.array([[5, 1], [5, 2], [5, 1], [2**64 - 1, 0], [2**64 - 1, 0], [0, 0]], np.uint64)
    write_hashes(tmp_path / "h.npy", hashes, 3, np.array([0, 1, 7, 8, 2**40 - 1, 4]))
    sources, rows = find_duplicates([tmp_path / "h.npy"], 1, 0)
    assert sources.tolist() == [3, 3]
    assert rows.tolist() == [7, 2**40 - 1]
    assert [find_duplicates([tmp_path / "h.npy"], 3, number)[1].tolist() for number in range(3)] == [
        [7],
        [],
        [2**40 - 1],
    ]


def test_a_range_keeps_no_file_open(tmp_path: Path) -> None:
    write_hashes(tmp_path / "h.npy", np.arange(8, dtype=np.uint64).reshape(4, 2), 0, np.arange(4))
    kept = _range_of(tmp_path / "h.npy", 1, 0)
    assert kept.shape == (3, 4)
    assert kept.base is None, "a view of the memory map would keep it open"


def test_ranges_bound_the_cells_compared_at_a_time() -> None:
    assert [n_ranges(cells) for cells in (0, 1, CELLS_PER_RANGE, CELLS_PER_RANGE + 1, 50_000_000)] == [
        1,
        1,
        1,
        2,
        12,
    ]
