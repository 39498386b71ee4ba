"""The coding of cells as bytes: what goes in comes out, and bytes that no writer makes harm nobody."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data.batch import CellBatch
from cellfoundry_data.store.decoding import (
    DECODED,
    GENE_OUT_OF_RANGE,
    OUTSIDE,
    TOO_FEW_ENTRIES,
    TOO_FEW_ESCAPES,
    decode_counts,
    decode_genes,
    place_values,
)
from cellfoundry_data.store.encoded_rows import STREAMS, encode_rows, in_order
from cellfoundry_data.store.encoding import encode, pack_rows
from cellfoundry_data.store.format import ESCAPE, Values

# Gaps around 255 and counts around every limit; a float32 holds each of them exactly.
gaps = st.one_of(st.integers(1, 5), st.sampled_from([254, 255, 256, 511, 5000]))
count_values = st.one_of(
    st.integers(1, 300), st.sampled_from([254, 255, 256, 65_535, 65_536, 2**24, 2**31, 2**32 - 2**8])
)
rows = st.lists(st.lists(st.tuples(gaps, count_values), max_size=40), min_size=1, max_size=12)


@given(
    rows=rows,
    chunk_nnz=st.integers(1, 50),
    first_gene=st.sampled_from([0, 254, 255, 300]),
    floats=st.booleans(),
    left_out=st.integers(0, 2**12 - 1),
)
@settings(max_examples=300, deadline=None)
def test_decoding_gives_back_what_was_encoded(
    rows: list[list[tuple[int, int]]], chunk_nnz: int, first_gene: int, floats: bool, left_out: int
) -> None:
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    genes = [np.cumsum([gap for gap, _ in row]) - (row[0][0] if row else 0) + first_gene for row in rows]
    gene_ids = np.concatenate([np.empty(0), *genes]).astype(np.int32)
    measured = np.array([count for row in rows for _, count in row], np.float32)
    wanted = np.array([not left_out >> row & 1 for row in range(len(rows))])
    keys = np.arange(len(rows), dtype=np.uint64)

    cells = CellBatch(indptr, gene_ids, measured, np.arange(len(rows)))
    encoded = encode(cells, keys, chunk_nnz, "float32" if floats else "counts")

    out_genes, out_counts = np.full(len(gene_ids), -1, np.int32), np.full(len(measured), -1, np.float32)
    row = 0
    for chunk, n_cells in enumerate(encoded.chunk_cells.tolist()):
        arrays = {name: array[chunk] for name, array in encoded.arrays.items()}
        destination = np.where(wanted, indptr[:-1], -1)[row : row + n_cells]
        row_nnz = arrays["row_nnz"][:n_cells]
        np.testing.assert_array_equal(arrays["cell_key"][:n_cells], keys[row : row + n_cells])
        row += n_cells
        assert (
            decode_genes(
                arrays["gene_delta"],
                arrays["gene_delta_escape"],
                row_nnz,
                destination,
                2**31 - 1,
                out_genes,
            )
            == DECODED
        )
        if floats:
            answer = place_values(
                arrays["value"].view(np.uint8), row_nnz, destination, out_counts.view(np.uint8)
            )
        else:
            answer = decode_counts(arrays["count"], arrays["count_escape"], row_nnz, destination, out_counts)
        assert answer == DECODED
    assert row == len(rows)
    entry_wanted = np.repeat(wanted, np.diff(indptr))
    np.testing.assert_array_equal(out_genes, np.where(entry_wanted, gene_ids, -1))
    np.testing.assert_array_equal(out_counts, np.where(entry_wanted, measured, -1))


@given(lengths=st.lists(st.integers(0, 20), max_size=60), chunk_nnz=st.integers(1, 25))
def test_chunks_hold_whole_rows_and_no_more_than_fit(lengths: list[int], chunk_nnz: int) -> None:
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    firsts = pack_rows(indptr, chunk_nnz)
    assert (firsts[0], firsts[-1]) == (0, len(lengths))
    assert (np.diff(firsts) >= 1).all()
    for first, last in itertools.pairwise(firsts):
        # More than fits only where one row alone has more.
        assert indptr[last] - indptr[first] <= max(chunk_nnz, *lengths[first:last], 0)
        # Not one row more would have fitted.
        assert last == len(lengths) or indptr[last + 1] - indptr[first] > chunk_nnz


def decode_two_entries(
    deltas: list[int], escapes: list[int], row_nnz: int = 2, destination: int = 0
) -> tuple[int, npt.NDArray[np.int32]]:
    gene_ids = np.full(4, -1, np.int32)
    answer = decode_genes(
        np.array(deltas, np.uint8),
        np.array(escapes, np.uint32),
        np.array([row_nnz], np.uint32),
        np.array([destination], np.int64),
        100,
        gene_ids[:2],
    )
    return answer, gene_ids


@pytest.mark.parametrize(
    ("deltas", "escapes", "answer"),
    [
        ([3, 255], [], TOO_FEW_ESCAPES),
        ([3, 255], [2**32 - 1], GENE_OUT_OF_RANGE),
        ([3, 254], [], GENE_OUT_OF_RANGE),
        ([3, 96], [], DECODED),
        ([3], [], TOO_FEW_ENTRIES),
    ],
)
def test_genes_that_no_writer_makes_are_refused(deltas: list[int], escapes: list[int], answer: int) -> None:
    got, gene_ids = decode_two_entries(deltas, escapes)
    assert got == answer
    np.testing.assert_array_equal(gene_ids[2:], -1)


@pytest.mark.parametrize(("row_nnz", "destination"), [(2, 1), (2, 2**62), (2**32 - 1, 0)])
def test_nothing_is_written_outside_the_outputs(row_nnz: int, destination: int) -> None:
    got, gene_ids = decode_two_entries([3, 96], [], row_nnz, destination)
    assert got in (OUTSIDE, TOO_FEW_ENTRIES)
    np.testing.assert_array_equal(gene_ids, -1)


@dataclass(frozen=True)
class Chunk:
    """Bytes of a chunk, sound or not, and the places of its rows: a number of rows, and gaps of some entries."""

    entries: npt.NDArray[np.uint8]
    escapes: npt.NDArray[np.uint32]
    row_nnz: npt.NDArray[np.uint32]
    destination: npt.NDArray[np.int64]
    room: int


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    """Rows long enough for vectors, and escapes and ends anywhere in one; now and then a part is missing."""
    row_nnz = np.array(draw(st.lists(st.integers(0, 70), min_size=1, max_size=6)), np.uint32)
    size = max(int(row_nnz.sum()) - draw(st.sampled_from([0, 0, 0, 1])), 0)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    entries = np.where(
        rng.random(size) < draw(st.sampled_from([0, 0.01, 0.2])), ESCAPE, rng.integers(255, size=size)
    )
    escapes = rng.integers(
        draw(st.sampled_from([1000, 2**32])),
        size=max((entries == ESCAPE).sum() - draw(st.sampled_from([0, 0, 0, 1])), 0),
    )
    order = np.array(draw(st.permutations(range(len(row_nnz)))))
    gap = draw(st.integers(0, 3))
    destination = np.empty(len(row_nnz), np.int64)
    destination[order] = gap + np.cumsum(row_nnz[order].astype(np.int64) + gap) - row_nnz[order] - gap
    room = int(row_nnz.sum() + gap * (len(row_nnz) + 1)) - draw(st.sampled_from([0, 0, 0, 1]))
    destination[rng.random(len(destination)) < 0.2] = -1
    return Chunk(entries.astype(np.uint8), escapes.astype(np.uint32), row_nnz, destination, max(room, 0))


def plainly_decoded(
    chunk: Chunk, dtype: type[np.generic], n_genes: int | None
) -> tuple[int, npt.NDArray[np.generic]]:
    """What one entry after the other gives: the answer, and the output, zero where nothing goes; genes or counts."""
    out, start, used = np.zeros(chunk.room, dtype), 0, 0
    for nnz, place in zip(chunk.row_nnz.tolist(), chunk.destination.tolist(), strict=True):
        row = chunk.entries[start : start + nnz].tolist()
        start += nnz
        if len(row) < nnz:
            return TOO_FEW_ENTRIES, out
        if place < 0:
            used += row.count(ESCAPE)
            continue
        if place + nnz > chunk.room:
            return OUTSIDE, out
        escapes = chunk.escapes[used : used + row.count(ESCAPE)].tolist()
        used += row.count(ESCAPE)
        if used > len(chunk.escapes):
            return TOO_FEW_ESCAPES, out
        left = iter(escapes)
        numbers = [next(left) if entry == ESCAPE else entry for entry in row]
        if n_genes is not None:
            numbers = list(itertools.accumulate(numbers))
            if max(numbers, default=0) >= n_genes:
                return GENE_OUT_OF_RANGE, out
        out[place : place + nnz] = numbers
    return DECODED, out


def guarded(
    size: int, dtype: type[np.generic], offset: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.generic]]:
    """Zeros ``offset`` bytes into memory that is all ones, and that memory."""
    width = 4 * size
    memory = np.full(width + 256, 0xFF, np.uint8)
    first = -memory.ctypes.data % 64 + offset
    memory[first : first + width] = 0
    return memory, np.frombuffer(memory.data, dtype, size, first)


@given(
    chunk=chunks(),
    offset=st.sampled_from([0, 4, 36, 60, 1, 62]),
    n_genes=st.sampled_from([3000, 10_000, 2**31 - 1]),
    genes=st.booleans(),
)
@settings(max_examples=500, deadline=None)
def test_vectors_decode_what_one_entry_after_the_other_gives_and_touch_nothing_else(
    chunk: Chunk, offset: int, n_genes: int, genes: bool
) -> None:
    dtype = np.int32 if genes else np.float32
    memory, out = guarded(chunk.room, dtype, offset)
    given = (chunk.entries, chunk.escapes, chunk.row_nnz, chunk.destination)
    answer = decode_genes(*given, n_genes, out) if genes else decode_counts(*given, out)
    expected, plain = plainly_decoded(chunk, dtype, n_genes if genes else None)
    assert answer == expected
    if answer == DECODED:
        np.testing.assert_array_equal(out, plain)
    first = out.ctypes.data - memory.ctypes.data
    assert (memory[:first] == 0xFF).all()
    assert (memory[first + 4 * chunk.room :] == 0xFF).all()


def test_genes_that_grow_beyond_32_bits_are_refused() -> None:
    deltas = np.full(
        2**24, 254, np.uint8
    )  # of the largest chunk that an index may name: they add up to 4.3e9
    gene_ids = np.empty(len(deltas), np.int32)
    row_nnz, destination = np.array([len(deltas)], np.uint32), np.zeros(1, np.int64)
    answer = decode_genes(deltas, np.empty(0, np.uint32), row_nnz, destination, 2**31 - 1, gene_ids)
    assert answer == GENE_OUT_OF_RANGE


@given(rows=rows, floats=st.booleans(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_encoded_rows_come_in_any_order_from_any_pieces(
    rows: list[list[tuple[int, int]]], floats: bool, data: st.DataObject
) -> None:
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    gene_ids = np.concatenate([np.empty(0), *(np.cumsum([gap for gap, _ in row]) for row in rows)])
    measured = np.array([count for row in rows for _, count in row], np.float32)
    cells = CellBatch(indptr, gene_ids.astype(np.int32), measured, np.arange(len(rows)))
    values: Values = "float32" if floats else "counts"

    order = np.array(data.draw(st.permutations(range(len(rows)))), np.int64)
    cut = data.draw(st.integers(0, len(rows)))
    pieces = [encode_rows(cells, part, values) for part in (np.arange(cut), np.arange(cut, len(rows)))]
    moved, wanted = in_order(pieces, order), encode_rows(cells, order, values)
    for name in (*STREAMS, *STREAMS.values()):
        np.testing.assert_array_equal(getattr(moved, name), getattr(wanted, name))
        assert getattr(moved, name).dtype == getattr(wanted, name).dtype
