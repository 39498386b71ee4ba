"""Cells and embeddings as Arrow streams: the same numbers, and no stream that hurts."""

from __future__ import annotations

import contextlib
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint import arrow
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.engines.base import POOLS, Engine

INDEX = {"A": 0, "B": 1, "C": 2}
HEADERS = {"Content-Type": arrow.MEDIA_TYPE, "Accept": arrow.MEDIA_TYPE}


def stream(table: pa.Table, rows: int | None = None, **options: Any) -> bytes:
    """The table as a stream of batches of ``rows`` cells."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, rows)
    return sink.getvalue().to_pybytes()


def lists(values: Any, cells: CellBatch, kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(cells.indptr, pa.int32()), pa.array(values, kind))


@pytest.mark.parametrize("form", ["genes", "gene_ids"])
@pytest.mark.parametrize("counts", [pa.float32(), pa.int64()], ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_arrow_in_and_out_gives_what_the_engine_computes(
    url: str, engine: Engine, cells: CellBatch, form: str, counts: pa.DataType, pool: str
) -> None:
    genes: Any = cells.gene_ids
    if form == "genes":
        genes = [engine.vocab_genes[gene] for gene in cells.gene_ids]
    table = pa.table(
        {
            form: lists(genes, cells, pa.string() if form == "genes" else pa.int32()),
            "counts": lists(cells.counts, cells, pa.float32()).cast(pa.list_(counts)),
        }
    )
    response = httpx.post(
        f"{url}/v1/embed", params={"pool": pool, "target": "a5"}, content=stream(table, 4), headers=HEADERS
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == arrow.MEDIA_TYPE
    embedding = pa.ipc.open_stream(response.content).read_all()["embedding"].combine_chunks()
    got = embedding.flatten().to_numpy().reshape(len(cells), -1)
    np.testing.assert_allclose(got, engine.encode(cells, pool=pool, target="a5"), atol=1e-4, rtol=0)


def test_json_in_may_be_arrow_out_and_back(url: str) -> None:
    body = {"genes": ["A1BG"], "counts": [3]}
    as_arrow = httpx.post(f"{url}/v1/embed", json=body, headers={"Accept": arrow.MEDIA_TYPE})
    rows = pa.ipc.open_stream(as_arrow.content).read_all()["embedding"].to_pylist()
    table = pa.table({"genes": [["A1BG", "NO_GENE"]], "counts": [[3, 1]]})
    as_json = httpx.post(f"{url}/v1/embed", content=stream(table), headers={"Content-Type": arrow.MEDIA_TYPE})
    np.testing.assert_allclose(as_json.json()["embedding"], rows, atol=1e-4, rtol=0)


def table(genes: Any, counts: Any, name: str = "genes") -> pa.Table:
    return pa.table({name: genes, "counts": counts})


BOMB = table([["A"] * 1_000_000], [[0.0] * 1_000_000])
DICTIONARY = table(pa.ListArray.from_arrays([0, 1], pa.array(["A"]).dictionary_encode()), pa.array([[1.0]]))

WITHOUT_SCHEMA = table([["A"]], [[1.0]]).to_batches()[0].serialize().to_pybytes()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no Arrow IPC stream"),
        (b"{}", "no Arrow IPC stream"),
        (stream(table([["A"]], [[1.0]]))[:200], "no Arrow IPC stream"),
        (WITHOUT_SCHEMA, "no Arrow IPC stream"),  # pyarrow's read_schema crashes on it
        (stream(table([["A"]], [[1.0]], "names")), "The columns are"),
        (stream(table([["A"]], [["1"]])), "The columns are"),
        (stream(table([1], [[1.0]])), "The columns are"),
        (stream(table([["A"]], [[1.0]]).append_column("more", pa.array([1]))), "The columns are"),
        (stream(DICTIONARY), "The columns are"),
        (stream(BOMB, compression="zstd"), "without compression"),
        (stream(BOMB, compression="lz4"), "without compression"),
        (stream(table([["A"]], [[1.0]]).slice(0, 0)), "no cells"),
        (stream(table([["A"]] * 4, [[1.0]] * 4), 1), "4 cells, the limit is 3"),
        (stream(table([["A"], ["B"]], [[1.0], [1.0, 2.0]])), "same length"),
        (stream(table([["A"], None], [[1.0], []])), "must not have nulls"),
        (stream(table([["A"]], pa.array([[None]], pa.list_(pa.int8())))), "must not have nulls"),
        (stream(table([["A"], ["X", "Y"]], [[1.0], [1.0, 2.0]])), "Cell 1: none of its 2 genes"),
        (stream(table([[3]], [[1.0]], "gene_ids")), "between 0 and 2"),
        (stream(table([[-1]], [[1.0]], "gene_ids")), "between 0 and 2"),
        (stream(table([[2**40]], [[1.0]], "gene_ids")), "between 0 and 2"),
        (stream(table([["A"]], [[0.5]])), "raw counts"),
        (stream(table([["A"]], [[float("nan")]])), "raw counts"),
        (stream(table([["A"]], [[1e300]])), "raw counts"),
    ],
    ids=range(23),
)
def test_every_mistake_gets_one_sentence(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        arrow.cells_from_arrow(body, INDEX, max_cells=3)


GOOD = stream(table([["A", "B"], [], ["C"]], [[1.0, 2.0], [], [3.0]]), 2)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_streams_are_read_or_refused_never_crash(data: st.DataObject) -> None:
    body = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(body) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if change == "flip":
            body[position] = data.draw(st.integers(0, 255))
        elif change == "insert":
            body[position:position] = data.draw(st.binary(max_size=8))
        elif position:
            del body[position:]
    with contextlib.suppress(RequestError):
        cells = arrow.cells_from_arrow(bytes(body), INDEX, max_cells=9)
        assert 1 <= len(cells) <= 9
        assert (cells.counts > 0).all()


ITEMS = (
    pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64(), pa.string(),
    pa.large_string(), pa.string_view(), pa.binary(), pa.binary(3), pa.binary_view(), pa.decimal32(5, 2),
    pa.decimal256(50, 3), pa.date64(), pa.time32("s"), pa.timestamp("ns", "UTC"), pa.duration("s"),
    pa.month_day_nano_interval(), pa.dictionary(pa.int8(), pa.string()), pa.run_end_encoded(pa.int32(), pa.float32()),
    pa.struct([("a", pa.int8())]), pa.struct([]), pa.map_(pa.string(), pa.int8()), pa.list_(pa.float32()),
    pa.dense_union([pa.field("a", pa.int8())]), pa.sparse_union([pa.field("a", pa.int8())]), pa.uuid(), pa.bool8(),
)  # fmt: skip
LISTS = (
    lambda item: item,
    pa.list_,
    pa.large_list,
    pa.list_view,
    pa.large_list_view,
    lambda item: pa.list_(item, 2),
    lambda item: pa.list_(pa.field("item", item, nullable=pa.types.is_null(item))),
)
COLUMN_TYPES = st.builds(lambda kind, item: kind(item), st.sampled_from(LISTS), st.sampled_from(ITEMS))


@settings(max_examples=100, deadline=None)
@given(COLUMN_TYPES, COLUMN_TYPES, st.sampled_from(["genes", "gene_ids"]), st.integers(0, 3), st.booleans())
def test_columns_of_any_type_are_read_or_refused(
    genes: pa.DataType, counts: pa.DataType, name: str, rows: int, filled: bool
) -> None:
    try:
        columns = [
            pa.array([[]] * rows, kind) if filled and pa.types.is_list(kind) else pa.nulls(rows, kind)
            for kind in (genes, counts)
        ]
        body = stream(pa.table({name: columns[0], "counts": columns[1]}))
    except pa.ArrowException:
        return  # of such a type pyarrow makes no column, or no stream
    with contextlib.suppress(RequestError):
        cells = arrow.cells_from_arrow(body, INDEX, max_cells=9)
        assert (len(cells), cells.nnz) == (rows, 0)
