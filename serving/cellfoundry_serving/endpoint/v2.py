"""Tensors of the Open Inference Protocol V2, in JSON and in its binary extension (little endian after the JSON)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfoundry_serving.endpoint.errors import RequestError

DTYPES: dict[str, np.dtype[Any]] = {
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
}
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class InferRequest:
    """A decoded request.

    Attributes:
        id: repeated in the answer.
        tensors: inputs by name.
        parameters: the request's own parameters, those of the protocol left out.
        binary: the client wants its outputs as bytes.
    """

    id: str
    tensors: dict[str, npt.NDArray[Any]]
    parameters: dict[str, Any]
    binary: bool


def decode(body: bytes, header_length: str | None, output: str) -> InferRequest:
    """Reads a request that may ask for ``output`` only; RequestError says what is malformed."""
    document = parse_json(body, header_length)
    inputs = document.get("inputs")
    parameters = document.get("parameters", {})
    outputs = document.get("outputs", [])
    if not isinstance(inputs, list) or not isinstance(parameters, dict) or not isinstance(outputs, list):
        raise RequestError(
            "The request needs a list 'inputs'; 'parameters' is an object and 'outputs' a list."
        )
    rest = memoryview(body)[int(header_length) :] if header_length else memoryview(b"")
    tensors: dict[str, npt.NDArray[Any]] = {}
    for item in inputs:
        name, tensor, rest = decode_tensor(item, rest)
        tensors[name] = tensor
    if len(rest):
        raise RequestError(f"The body has {len(rest)} bytes more than its inputs account for.")
    binary = parameters.pop("binary_data_output", None) is True
    for item in outputs:
        if not isinstance(item, dict) or item.get("name") != output:
            raise RequestError(f"The only output is {output!r}.")
        binary = binary or mapping(item, "parameters").get("binary_data") is True
    return InferRequest(str(document.get("id", "")), tensors, parameters, binary)


def parse_json(body: bytes, header_length: str | None) -> dict[str, Any]:
    """The JSON part of a body: all of it, or its first ``header_length`` bytes."""
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdigit() and len(header_length) < 16
        if not digits or int(header_length) > len(body):
            raise RequestError(f"{HEADER_LENGTH} must be a number of bytes within the body.")
        body = body[: int(header_length)]
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("The request is not valid JSON.") from error
    if not isinstance(document, dict):
        raise RequestError("The request must be a JSON object.")
    return document


def decode_tensor(item: Any, rest: memoryview) -> tuple[str, npt.NDArray[Any], memoryview]:
    """One input, which must be one-dimensional, and the bytes behind it."""
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise RequestError("Each input needs a 'name'.")
    name, shape = item["name"], item.get("shape")
    dtype = DTYPES.get(str(item.get("datatype")))
    if dtype is None:
        raise RequestError(f"Input {name!r}: the datatype must be one of {', '.join(DTYPES)}.")
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 0:
        raise RequestError(f"Input {name!r}: the shape must be a list of one size.")
    count = shape[0]
    size = mapping(item, "parameters").get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != count * dtype.itemsize or size > len(rest):
            raise RequestError(f"Input {name!r}: its shape, binary_data_size and the body disagree.")
        return name, np.frombuffer(rest[:size], dtype), rest[size:]
    numbers = json_tensor(item.get("data"), dtype)
    if numbers is None or len(numbers) != count:
        raise RequestError(f"Input {name!r}: 'data' must be {count} numbers of type {item['datatype']}.")
    return name, numbers, rest


def json_tensor(data: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """Numbers from flat or nested lists, flattened; None where they are no numbers or do not fit ``dtype``."""
    try:
        numbers = np.array(data).reshape(-1)
    except ValueError:  # lists of unequal length, or nested too deeply
        return None
    accepted = "iuf" if dtype.kind == "f" else "iu"
    if not isinstance(data, list) or (numbers.size and numbers.dtype.kind not in accepted):
        return None
    with np.errstate(over="ignore"):  # what overflows float32 becomes infinite, which no cell may hold
        converted = numbers.astype(dtype)
    if dtype.kind == "i" and (converted != numbers).any():
        return None
    return converted


def mapping(item: dict[str, Any], key: str) -> dict[str, Any]:
    """``item[key]``, an object; absent is empty."""
    value = item.get(key, {})
    if not isinstance(value, dict):
        raise RequestError(f"{key!r} must be an object.")
    return value


def encode(
    model: str, request: InferRequest, name: str, array: npt.NDArray[np.float32]
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer with one FP32 output; NaN is null in JSON."""
    output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
    answer = {"model_name": model, "model_version": "1", "id": request.id, "outputs": [output]}
    if not request.binary:
        output["data"] = json_numbers(array.reshape(-1))
        return json.dumps(answer, allow_nan=False).encode(), {"Content-Type": "application/json"}
    tensor = np.ascontiguousarray(array, dtype="<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(tensor)}
    header = json.dumps(answer).encode()
    return header + tensor, {
        "Content-Type": "application/octet-stream",
        HEADER_LENGTH: str(len(header)),
    }


def json_numbers(array: npt.NDArray[np.float32]) -> list[Any]:
    """Nested lists with None for NaN and infinity, which JSON does not have."""
    if np.isfinite(array).all():
        return array.tolist()
    numbers = array.astype(object)
    numbers[~np.isfinite(array)] = None
    return numbers.tolist()
