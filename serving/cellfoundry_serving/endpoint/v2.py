"""Tensors of the Open Inference Protocol V2, in JSON and in its binary extension (little endian after the JSON)."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cellfoundry_serving.endpoint.aside import joined_bytes
from cellfoundry_serving.endpoint.errors import MAX_NAME, RequestError, json_too_large

DTYPES: dict[str, np.dtype[Any]] = {
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
}
PIECE = 8192  # numbers that are turned into another form at once, within 10 ms
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


def decode(body: bytes, header_length: str | None, output: str, max_json: int | None = None) -> InferRequest:
    """Reads a request that may ask for ``output`` only; RequestError says what is malformed."""
    document = parse_json(body, header_length, max_json)
    inputs = document.get("inputs")
    parameters = document.get("parameters", {})
    outputs = document.get("outputs", [])
    if not isinstance(inputs, list) or not isinstance(parameters, dict) or not isinstance(outputs, list):
        raise RequestError(
            "The request needs a list 'inputs'; 'parameters' is an object and 'outputs' a list."
        )
    identifier = document.get("id", "")
    if not isinstance(identifier, str):
        raise RequestError("The request's 'id' must be text.")
    rest = memoryview(body)[int(header_length) :] if header_length else memoryview(b"")
    tensors: dict[str, npt.NDArray[Any]] = {}
    for item in inputs:
        name, tensor, rest = decode_tensor(item, rest)
        tensors[name] = tensor
    if len(rest):
        raise RequestError(f"The body has {len(rest)} bytes more than its inputs account for.")
    binary = parameters.pop("binary_data_output", None) is True
    for item in outputs:
        if not isinstance(item, dict):
            raise RequestError("Each output is an object.")
        wanted = mapping(item, "parameters")
        check_output(item.get("name"), wanted, output)
        binary = binary or wanted.get("binary_data") is True
    return InferRequest(identifier, tensors, parameters, binary)


def check_output(name: Any, parameters: Mapping[str, Any], output: str) -> None:
    """RequestError for another output than ``output``, or another form of it, such as shared memory."""
    if name != output:
        raise RequestError(f"The only output is {output!r}.")
    if parameters.keys() - {"binary_data"}:
        raise RequestError("The only parameter of an output is 'binary_data'.")


def parse_json(body: bytes, header_length: str | None, max_bytes: int | None = None) -> dict[str, Any]:
    """The JSON part of a body: all of it, or its first ``header_length`` bytes, of which there may be ``max_bytes``."""
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdigit() and len(header_length) < 16
        if not digits or int(header_length) > len(body):
            raise RequestError(f"{HEADER_LENGTH} must be a number of bytes within the body.")
        body = body[: int(header_length)]
    if max_bytes is not None and len(body) > max_bytes:
        raise json_too_large(max_bytes)
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
    name = item["name"]
    dtype, count = declared(name, item.get("datatype"), item.get("shape"))
    size = mapping(item, "parameters").get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != count * dtype.itemsize or size > len(rest):
            raise RequestError(f"Input {name!r}: its shape, binary_data_size and the body disagree.")
        return name, np.frombuffer(rest[:size], dtype), rest[size:]
    numbers = json_tensor(item.get("data"), dtype)
    if numbers is None or len(numbers) != count:
        raise RequestError(f"Input {name!r}: 'data' must be {count} numbers of type {item['datatype']}.")
    return name, numbers, rest


def declared(name: str, datatype: Any, shape: Any) -> tuple[np.dtype[Any], int]:
    """Type and number of an input's elements; RequestError unless it is one-dimensional."""
    if len(name) > MAX_NAME:
        raise RequestError(f"Input {name[:MAX_NAME]!r}: there is no input with so long a name.")
    dtype = DTYPES.get(str(datatype))
    if dtype is None:
        raise RequestError(f"Input {name!r}: the datatype must be one of {', '.join(DTYPES)}.")
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 0:
        raise RequestError(f"Input {name!r}: the shape must be a list of one size.")
    return dtype, shape[0]


def json_tensor(data: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """Numbers from flat or nested lists, flattened; None where they are no numbers or do not fit ``dtype``.

    numpy sees nothing but numbers: of texts it would make an array as wide as the longest for each.
    """
    leaves = flattened(data)
    if leaves is None or not set(map(type, leaves)) <= {int, float}:
        return None
    numbers = np.array(leaves)
    accepted = "iuf" if dtype.kind == "f" else "iu"
    if numbers.size and numbers.dtype.kind not in accepted:  # integers beyond 64 bits are objects
        return None
    with np.errstate(over="ignore"):  # what overflows float32 becomes infinite, which no cell may hold
        converted = numbers.astype(dtype)
    if dtype.kind == "i" and (converted != numbers).any():
        return None
    return converted


def flattened(data: Any) -> list[Any] | None:
    """The leaves of a list whose lists, at each depth, are of one length; None for anything else."""
    if not isinstance(data, list):
        return None
    while data and isinstance(data[0], list):
        length = len(data[0])
        if not all(isinstance(row, list) and len(row) == length for row in data):
            return None
        data = list(itertools.chain.from_iterable(data))
    return data


def mapping(item: dict[str, Any], key: str) -> dict[str, Any]:
    """``item[key]``, an object; absent is empty."""
    value = item.get(key, {})
    if not isinstance(value, dict):
        raise RequestError(f"{key!r} must be an object.")
    return value


def encode(
    model: str, version: int, request: InferRequest, name: str, array: npt.NDArray[np.float32]
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer with one FP32 output; NaN is null in JSON."""
    output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
    answer = {"model_name": model, "model_version": str(version), "id": request.id, "outputs": [output]}
    if not request.binary:
        head = json.dumps(answer).removesuffix("}]}")  # the output comes last, and its data last in it
        return f'{head}, "data": [{json_numbers(array)}]}}]}}'.encode(), {"Content-Type": "application/json"}
    tensor = np.ascontiguousarray(array, dtype="<f4").reshape(-1).view(np.uint8)
    output["parameters"] = {"binary_data_size": len(tensor)}
    header = json.dumps(answer).encode()
    return joined_bytes([memoryview(header), tensor.data]), {
        "Content-Type": "application/octet-stream",
        HEADER_LENGTH: str(len(header)),
    }


def json_numbers(array: npt.NDArray[np.float32]) -> str:
    """The numbers, flattened, as JSON between commas; null for NaN and infinity, which JSON does not have.

    In pieces: one long call into C would keep the interpreter's lock, and so stop the event loop.
    """
    flat = array.reshape(-1)
    return ", ".join(_json_piece(flat[first : first + PIECE]) for first in range(0, len(flat), PIECE))


def _json_piece(array: npt.NDArray[np.float32]) -> str:
    numbers = array.tolist()
    if not np.isfinite(array).all():
        numbers = [number if math.isfinite(number) else None for number in numbers]
    return json.dumps(numbers, allow_nan=False)[1:-1]
