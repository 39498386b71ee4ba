"""What the OpenAPI document says of answers, which are written raw.

Routes that say it answer with ``response_class=Response``: FastAPI would otherwise promise JSON for each.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from cellfoundry_serving.endpoint import arrow, v2

Responses: TypeAlias = dict[int | str, dict[str, Any]]

BINARY = {"type": "string", "format": "binary"}
NUMBERS = {"type": "array", "items": {"type": ["number", "null"]}}


def _answer(description: str, content: dict[str, Any], headers: dict[str, str] | None = None) -> Responses:
    """``responses`` of a route: a body by media type, each a schema."""
    said: dict[str, Any] = {
        "description": description,
        "content": {media_type: {"schema": schema} for media_type, schema in content.items()},
    }
    if headers:
        said["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
        }
    return {200: said}


def _v2_answer(output: dict[str, Any]) -> dict[str, Any]:
    """The protocol's answer with one output."""
    return {
        "type": "object",
        "required": ["model_name", "model_version", "id", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string", "description": "The request's."},
            "outputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {"type": "object", "required": ["name", "datatype", "shape"], "properties": output},
            },
        },
    }


SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0}}

EMBEDDED = _answer(
    "Embeddings (cells, width) in the order of the request; nulls, in Arrow NaN, for a cell without counts.",
    {
        "application/json": {
            "type": "object",
            "required": ["embedding", "width"],
            "properties": {
                "embedding": {"type": "array", "items": NUMBERS},
                "width": {"type": "integer", "minimum": 1},
            },
        },
        arrow.MEDIA_TYPE: BINARY,
    },
    {arrow.VERSION_HEADER: "Version of the model that answered."},
)
INFERRED = _answer(
    "Embeddings (cells, width), in JSON, or in binary where the request asks for it.",
    {
        "application/json": _v2_answer(
            {"name": {"type": "string"}, "datatype": {"const": "FP32"}, "shape": SHAPE, "data": NUMBERS}
        ),
        "application/octet-stream": BINARY,
    },
    {v2.HEADER_LENGTH: "Of a binary answer: bytes of the JSON before the tensor."},
)
KEPT_RESULT = _answer(
    "Where the result waits to be fetched.",
    {
        "application/json": _v2_answer(
            {
                "name": {"const": "result"},
                "datatype": {"const": "BYTES"},
                "shape": SHAPE,
                "data": {"type": "array", "items": {"type": "string", "format": "uri"}},
            }
        )
    },
)
RESULT = _answer("A float32 array in numpy's format.", {"application/octet-stream": BINARY})
METRICS = _answer("Prometheus's text format.", {"text/plain": {"type": "string"}})
