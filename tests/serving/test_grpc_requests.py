"""What gRPC reads out of a request, and that it refuses everything else with one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from grpc_client import MODEL, Channel, copies, request_of, service
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from cellfoundry_serving.endpoint.cells import cells_from_tensors
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.server import running_with_grpc
from cellfoundry_serving.endpoint.v2_grpc.messages import message_class
from cellfoundry_serving.endpoint.v2_grpc.tensors import decode
from cellfoundry_serving.engines.base import Engine

ModelInferRequest = message_class("ModelInferRequest")


@pytest.fixture(scope="module")
def channel(engine: Engine) -> Iterator[Channel]:
    with running_with_grpc(service(engine)) as (_, address), Channel(address) as channel:
        yield channel


def parameter(**choice: Any) -> Any:
    return service_pb2.InferParameter(**choice)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.raw_input_contents.pop(), "3 inputs and 2 raw_input_contents"),
        (lambda r: r.raw_input_contents.append(b""), "3 inputs and 4 raw_input_contents"),
        (lambda r: r.ClearField("raw_input_contents"), "'indptr': its contents must be 2 int64_contents"),
        (lambda r: r.inputs[0].contents.int64_contents.append(1), "either contents or raw_input_contents"),
        (lambda r: r.raw_input_contents.__setitem__(0, bytes(15)), "'indptr': its shape and the size"),
        (lambda r: r.inputs[1].shape.__setitem__(0, 3), "'gene_ids': its shape and the size"),
        (lambda r: r.inputs[1].shape.__setitem__(0, -1), "'gene_ids': the shape must be a list of one size"),
        (lambda r: r.inputs[1].shape.append(1), "'gene_ids': the shape must be a list of one size"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 2**62), "'indptr': its shape and the size"),
        (lambda r: setattr(r.inputs[2], "datatype", "FP16"), "'counts': the datatype must be one of INT32"),
        (lambda r: setattr(r.inputs[2], "datatype", "INT32"), "'counts' must be float32"),
        (lambda r: setattr(r.inputs[2], "name", "values"), "The inputs are indptr"),
        (lambda r: r.ClearField("inputs") or r.ClearField("raw_input_contents"), "The inputs are indptr"),
        (lambda r: r.raw_input_contents.__setitem__(1, b"\xff" * 8), "gene_ids must lie between 0 and 399"),
        (lambda r: r.raw_input_contents.__setitem__(2, b"\xff" * 8), "counts must be raw counts"),
        (lambda r: r.raw_input_contents.__setitem__(0, b"\xff" * 16), "indptr must start at 0"),
        (lambda r: setattr(r.inputs[2], "name", "x" * 20_000), "Input 'xxx"),
        (lambda r: r.outputs.add(name="x"), "The only output is 'embedding'"),
        (
            lambda r: r.outputs.add(
                name="embedding", parameters={"classification": parameter(int64_param=3)}
            ),
            "The only parameter of an output",
        ),
        (
            lambda r: r.parameters["pool"].MergeFrom(parameter(string_param="mean")),
            "'pool' must be one of all",
        ),
        (lambda r: r.parameters["pool"].SetInParent(), "'pool' must be one of all"),
        (lambda r: r.parameters["target"].MergeFrom(parameter(int64_param=4)), "'target' must be text"),
        (lambda r: r.parameters["target"].MergeFrom(parameter(string_param="x1")), "target"),
        (
            lambda r: r.parameters["sequence_id"].MergeFrom(parameter(int64_param=4)),
            "no parameter 'sequence_id'",
        ),
    ],
)
def test_every_mistake_gets_one_sentence(channel: Channel, change: Any, message: str) -> None:
    request = request_of(copies(1))
    change(request)
    code, sentence = channel.refusal(request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert message in sentence


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [("x", "", "no such model"), ("", "", "no such model"), (MODEL, "7", "no such version")],
)
def test_models_that_are_not_there(channel: Channel, name: str, version: str, message: str) -> None:
    code, sentence = channel.refusal(service_pb2.ModelInferRequest(model_name=name, model_version=version))
    assert code == grpc.StatusCode.NOT_FOUND
    assert message in sentence


INTACT = request_of(copies(3), id="1").SerializeToString()
places = st.integers(0, len(INTACT) - 1)
kinds = st.sampled_from(["flip", "cut", "insert"])
changes = st.lists(st.tuples(places, kinds, st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)


@given(changes)
@settings(max_examples=300)
def test_damaged_messages_are_read_or_refused_never_crash(changes: list[tuple[int, str, bytes]]) -> None:
    body = bytearray(INTACT)
    for position, kind, content in changes:
        if kind == "flip":
            body[position : position + 1] = content[:1]
        elif kind == "insert":
            body[position:position] = content
        else:
            del body[position:]
    try:
        request = ModelInferRequest.FromString(bytes(body))
    except DecodeError:
        return
    read_or_refused(request)


contents = st.fixed_dictionaries(
    {},
    optional={
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
        "int64_contents": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
        "fp32_contents": st.lists(st.floats(width=32), max_size=4),
        "bool_contents": st.lists(st.booleans(), max_size=2),
        "bytes_contents": st.lists(st.binary(max_size=3), max_size=2),
    },
)
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["indptr", "gene_ids", "counts", ""]),
        "datatype": st.sampled_from(["INT64", "INT32", "FP32", "BYTES", ""]),
        "shape": st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), max_size=2),
    },
    optional={"contents": contents},
)


@given(st.lists(tensors, max_size=4), st.lists(st.binary(max_size=16), max_size=4))
@settings(max_examples=300)
def test_any_message_is_read_or_refused(inputs: list[dict[str, Any]], raw: list[bytes]) -> None:
    read_or_refused(ModelInferRequest(inputs=inputs, raw_input_contents=raw))


def read_or_refused(request: Any) -> None:
    with contextlib.suppress(RequestError):
        tensors = decode(request, "embedding").tensors
        cells = cells_from_tensors(tensors, n_genes=10, max_cells=3)
        assert (cells.counts > 0).all()
        assert np.isfinite(cells.counts).all()
