"""The V2 codec alone: what it reads back, and that it refuses everything else with its own error."""

from __future__ import annotations

import contextlib
import itertools
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellfoundry_serving.endpoint import v2
from cellfoundry_serving.endpoint.cells import (
    cells_from_json,
    cells_from_tensors,
    checked_batch,
    is_canonical,
)
from cellfoundry_serving.endpoint.errors import RequestError

matrices = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(width=32)
)


def body_of(indptr: np.ndarray, gene_ids: np.ndarray, counts: np.ndarray) -> tuple[bytes, bytes]:
    tensors = {"indptr": ("INT64", indptr), "gene_ids": ("INT32", gene_ids), "counts": ("FP32", counts)}
    inputs = [
        {
            "name": name,
            "datatype": kind,
            "shape": [len(array)],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, (kind, array) in tensors.items()
    ]
    return json.dumps({"id": "a", "inputs": inputs}).encode(), b"".join(
        a.tobytes() for _, a in tensors.values()
    )


HEADER, TAIL = body_of(
    np.array([0, 3, 3, 5], dtype=np.int64),
    np.array([9, 2, 9, 0, 4], dtype=np.int32),
    np.array([1, 5, 2, 0, 3], dtype=np.float32),
)


def test_cells_are_sorted_summed_and_free_of_zeros() -> None:
    request = v2.decode(HEADER + TAIL, str(len(HEADER)), "embedding")
    cells = cells_from_tensors(request.tensors, n_genes=10, max_cells=3)
    assert cells.indptr.tolist() == [0, 2, 2, 3]
    assert cells.gene_ids.tolist() == [2, 9, 4]
    assert cells.counts.tolist() == [5, 3, 3]
    assert (cells.indptr.dtype, cells.gene_ids.dtype, cells.counts.dtype) == (np.int64, np.int32, np.float32)


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=5), min_size=1, max_size=4)
)
def test_cells_sent_in_order_are_what_sorting_makes_of_them(cells: list[list[tuple[int, int]]]) -> None:
    """The short way for sorted cells against the way of all others, which sorts, sums and drops zeros."""
    lengths = [len(cell) for cell in cells]
    genes = np.array([gene for cell in cells for gene, _ in cell], dtype=np.int32)
    counts = np.array([count for cell in cells for _, count in cell], dtype=np.float32)
    sent = checked_batch(np.cumsum([0, *lengths]), genes, counts, n_genes=10)
    again = checked_batch(sent.indptr, sent.gene_ids, sent.counts, n_genes=10)
    assert is_canonical(sent.indptr, sent.gene_ids, sent.counts)
    rows = [dict.fromkeys(gene for gene, _ in cell) for cell in cells]
    for row, (cell, known) in enumerate(zip(cells, rows, strict=True)):
        entries = slice(sent.indptr[row], sent.indptr[row + 1])
        summed = {gene: sum(count for other, count in cell if other == gene) for gene in sorted(known)}
        assert sent.gene_ids[entries].tolist() == [gene for gene, total in summed.items() if total]
        assert sent.counts[entries].tolist() == [total for total in summed.values() if total]
    for one, other in (
        (sent.indptr, again.indptr),
        (sent.gene_ids, again.gene_ids),
        (sent.counts, again.counts),
    ):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


@given(matrices, st.booleans())
def test_an_output_is_read_back_as_it_was(array: np.ndarray, binary: bool) -> None:
    body, headers = v2.encode("m", 1, v2.InferRequest("1", {}, {}, binary), "embedding", array)
    if binary:
        length = int(headers[v2.HEADER_LENGTH])
        shape = json.loads(body[:length])["outputs"][0]["shape"]
        np.testing.assert_array_equal(np.frombuffer(body[length:], "<f4").reshape(shape), array)
    else:
        output = json.loads(body)["outputs"][0]
        got = np.array(output["data"], dtype=np.float32).reshape(output["shape"])
        np.testing.assert_array_equal(got, np.where(np.isfinite(array), array, np.nan))


@given(st.data())
def test_damaged_requests_are_read_or_refused_never_crash(data: st.DataObject) -> None:
    body = bytearray(HEADER + TAIL)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(body) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if change == "flip":
            body[position] = data.draw(st.integers(0, 255))
        elif change == "insert":
            body[position:position] = data.draw(st.binary(max_size=8))
        elif position:
            del body[position:]
    length = str(data.draw(st.one_of(st.just(len(HEADER)), st.integers(0, len(body) + 5))))
    with contextlib.suppress(RequestError):
        request = v2.decode(bytes(body), length, "embedding")
        cells = cells_from_tensors(request.tensors, n_genes=10, max_cells=3)
        in_cell = [cells.gene_ids[first:last] for first, last in itertools.pairwise(cells.indptr)]
        assert all((np.diff(genes) > 0).all() for genes in in_cell)
        assert (cells.counts > 0).all()
        assert np.isfinite(cells.counts).all()


# Values of every JSON type in every place that the decoder looks at.
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=2)
items = st.fixed_dictionaries({}, optional=dict.fromkeys(("name", "shape", "data", "parameters"), values))
tensors = st.fixed_dictionaries({"datatype": st.sampled_from([*v2.DTYPES, "BYTES"]) | values, "item": items})
inputs = st.lists(tensors.map(lambda drawn: {**drawn["item"], "datatype": drawn["datatype"]}), max_size=3)


@given(inputs | values, values | st.lists(items, max_size=2), values)
def test_any_json_is_read_or_refused(inputs: object, outputs: object, parameters: object) -> None:
    document = {"inputs": inputs, "outputs": outputs, "parameters": parameters}
    with contextlib.suppress(RequestError):
        v2.decode(json.dumps(document).encode(), None, "embedding")


@given(
    st.sampled_from(["INT32", "INT64", "FP32"]),
    st.lists(
        st.integers(-(2**70), 2**70) | st.floats() | st.booleans() | st.none() | st.text(max_size=3),
        max_size=4,
    ),
)
def test_json_numbers_arrive_unchanged_or_not_at_all(kind: str, data: list[object]) -> None:
    item = {"name": "x", "datatype": kind, "shape": [len(data)], "data": data}
    try:
        _, tensor, _ = v2.decode_tensor(item, memoryview(b""))
    except RequestError:
        return
    if kind == "FP32":
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(tensor, np.array(data, dtype=np.float64).astype(np.float32))
    else:
        assert tensor.tolist() == data


def test_texts_among_numbers_cost_no_memory() -> None:
    """numpy would make each of them as wide as the longest: 1.6 GB of this."""
    data = ["a" * 20_000] + [""] * 19_999
    tracemalloc.start()
    try:
        assert v2.json_tensor(data, np.dtype(np.float32)) is None
        assert v2.json_tensor([data], np.dtype(np.float32)) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6


@pytest.mark.parametrize(
    "data", [[[1, 2], [3]], [[1, 2], 3], [1, [2]], [[[1]], [2]], [[], [1]], [True], [None], 1, "1"]
)
def test_what_is_no_table_of_numbers_is_refused(data: object) -> None:
    assert v2.json_tensor(data, np.dtype(np.float32)) is None


def test_nested_lists_are_flattened() -> None:
    data = [[[1, 2.5]], [[3, 4]]]
    np.testing.assert_array_equal(v2.json_tensor(data, np.dtype(np.float32)), [1, 2.5, 3, 4])


genes = st.lists(st.sampled_from(["A", "B", "C"]) | scalars, max_size=3)
counts = st.lists(st.integers(0, 9) | values, max_size=3)


@given(st.lists(st.fixed_dictionaries({"genes": genes | values, "counts": counts | values}) | values))
def test_any_named_cells_are_read_or_refused(document: list[object]) -> None:
    with contextlib.suppress(RequestError):
        cells = cells_from_json(document, {"A": 0, "B": 1}, max_cells=3)
        assert len(cells) == len(document)
        assert (cells.counts > 0).all()


def test_too_many_cells_is_413() -> None:
    request = v2.decode(HEADER + TAIL, str(len(HEADER)), "embedding")
    with pytest.raises(RequestError, match="3 cells, the limit is 2") as caught:
        cells_from_tensors(request.tensors, n_genes=10, max_cells=2)
    assert caught.value.status == 413
