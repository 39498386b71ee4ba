"""Inference requests and answers as messages: raw bytes or typed contents in, raw bytes out, all little endian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.v2 import PIECE, InferRequest, check_output, declared
from cellfoundry_serving.endpoint.v2_grpc.messages import ModelInferResponse

CONTENTS = {"INT32": "int_contents", "INT64": "int64_contents", "FP32": "fp32_contents"}
"""Where a datatype's numbers stand in InferTensorContents."""


def decode(request: Any, output: str) -> InferRequest:
    """Reads a ModelInferRequest that may ask for ``output`` only; RequestError says what is malformed."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            f"The request has {len(request.inputs)} inputs and {len(raw)} raw_input_contents; give one for each."
        )
    tensors: dict[str, npt.NDArray[Any]] = {}
    for position, item in enumerate(request.inputs):
        dtype, count = declared(item.name, item.datatype, list(item.shape))
        if raw:
            tensors[item.name] = _raw_tensor(item, raw[position], dtype, count)
        else:
            tensors[item.name] = _typed_tensor(item, dtype, count)
    for asked in request.outputs:
        check_output(asked.name, parameters_of(asked.parameters), output)
    return InferRequest(request.id, tensors, parameters_of(request.parameters), binary=True)


def _raw_tensor(item: Any, content: bytes, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    if item.HasField("contents"):
        raise RequestError(f"Input {item.name!r}: give either contents or raw_input_contents.")
    if len(content) != count * dtype.itemsize:
        raise RequestError(f"Input {item.name!r}: its shape and the size of its raw_input_contents disagree.")
    return np.frombuffer(content, dtype)


def _typed_tensor(item: Any, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    field = CONTENTS[item.datatype]
    numbers = getattr(item.contents, field)
    filled = {found.name for found, _ in item.contents.ListFields()}
    if len(numbers) != count or not filled <= {field}:
        raise RequestError(f"Input {item.name!r}: its contents must be {count} {field}.")
    tensor = np.empty(count, dtype)
    for first in range(0, count, PIECE):
        piece = numbers[first : first + PIECE]
        tensor[first : first + PIECE] = np.fromiter(piece, dtype, len(piece))
    return tensor


def parameters_of(messages: Mapping[str, Any]) -> dict[str, Any]:
    """Values of InferParameter messages by name; None for one without a value."""
    chosen = {name: message.WhichOneof("parameter_choice") for name, message in messages.items()}
    return {name: getattr(messages[name], field) if field else None for name, field in chosen.items()}


def encode(model: str, version: int, request: InferRequest, name: str, array: npt.NDArray[np.float32]) -> Any:
    """A ModelInferResponse with one FP32 output."""
    return ModelInferResponse(
        model_name=model,
        model_version=str(version),
        id=request.id,
        outputs=[{"name": name, "datatype": "FP32", "shape": array.shape}],
        raw_output_contents=[np.ascontiguousarray(array, dtype="<f4").tobytes()],
    )
