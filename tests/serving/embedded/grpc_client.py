"""What tests ask over gRPC, with Triton's client and without one."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import OpenedSource
from cellfoundry_serving.engines.base import Engine

MODEL = "cellfoundry"
METHOD = "/inference.GRPCInferenceService/"


def service(engine: Engine, **limits: Any) -> Service:
    """Without a cache, so that every request is computed."""
    return Service([OpenedSource(engine)], Limits(cache_bytes=0, **limits))


def tensors(cells: CellBatch) -> tuple[tuple[str, str, np.ndarray], ...]:
    """Name, datatype and array of each input."""
    return (
        ("indptr", "INT64", cells.indptr),
        ("gene_ids", "INT32", cells.gene_ids),
        ("counts", "FP32", cells.counts),
    )


def inputs(cells: CellBatch) -> list[triton.InferInput]:
    """For ``infer`` of Triton's client."""
    made = []
    for name, datatype, array in tensors(cells):
        made.append(triton.InferInput(name, list(array.shape), datatype))
        made[-1].set_data_from_numpy(array)
    return made


def copies(cells: int) -> CellBatch:
    """Of a cell of two genes, which has four tokens."""
    return CellBatch(
        np.arange(0, 2 * cells + 1, 2),
        np.tile(np.arange(2, dtype=np.int32), cells),
        np.tile(np.array([1, 2], np.float32), cells),
        np.arange(cells),
    )


def request_of(cells: CellBatch, **fields: Any) -> Any:
    """Triton's message of these cells, to be damaged."""
    request = service_pb2.ModelInferRequest(model_name=MODEL, **fields)
    for tensor in inputs(cells):
        request.inputs.append(tensor._get_tensor())
        request.raw_input_contents.append(tensor._get_content())
    return request


def refused(call: Any) -> grpc.RpcError:
    """The error that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call was answered")


class Channel:
    """Plain gRPC, which sends messages that no client would make."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self.infer = self._channel.unary_unary(
            f"{METHOD}ModelInfer", lambda message: message.SerializeToString()
        )

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def refusal(self, request: Any) -> tuple[grpc.StatusCode, str]:
        """Status and sentence."""
        error = refused(lambda: self.infer(request))
        return error.code(), error.details()
