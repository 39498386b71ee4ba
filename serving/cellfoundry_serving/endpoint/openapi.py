"""What the OpenAPI document says of bodies, which are read raw: forms, defaults and examples that work."""

from __future__ import annotations

from typing import Any

from cellfoundry_serving.endpoint import arrow, h5ad
from cellfoundry_serving.endpoint.scfoundation_request import OPTIONS, TABLE
from cellfoundry_serving.engines.base import POOLS

CONVENTIONS: dict[str, Any] = {
    "pool": {
        "type": "string",
        "enum": list(POOLS),
        "default": "all",
        "description": "all: S, T, maximum and mean over genes; max: maximum over all tokens.",
    },
    "target": {
        "type": "string",
        "default": "t4",
        "pattern": r"^[tfa]-?[0-9]+(\.[0-9]+)?$",
        "description": "Depth asked for: tN is log10 of the total, fN times the cell's own, aN adds to its log10.",
    },
}

MODEL: dict[str, Any] = {
    "model": {"type": "string", "description": "Name of a model; by default the first."},
    "version": {"type": "string", "description": "Its version; by default the newest."},
}

GENES = {
    "type": "array",
    "items": {"type": "string"},
    "description": "Names as in /v1/vocabulary; others are dropped.",
}
COUNTS = {
    "type": "array",
    "items": {"type": "number", "minimum": 0},
    "description": "Raw counts, one a gene.",
}
MATRIX = {"type": "array", "items": COUNTS, "description": "One row of counts a cell."}

NATIVE_BODY: dict[str, Any] = {
    "oneOf": [
        {
            "title": "cells, each with its own genes",
            "type": "object",
            "required": ["cells"],
            "additionalProperties": False,
            "properties": {
                "cells": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["genes", "counts"],
                        "properties": {"genes": GENES, "counts": COUNTS},
                    },
                },
                **CONVENTIONS,
                **MODEL,
            },
        },
        {
            "title": "genes of all cells, and their counts",
            "type": "object",
            "required": ["genes", "counts"],
            "additionalProperties": False,
            "properties": {"genes": GENES, "counts": {"oneOf": [COUNTS, MATRIX]}, **CONVENTIONS, **MODEL},
        },
    ]
}

NATIVE_EXAMPLES: dict[str, Any] = {
    "one cell": {"value": {"genes": ["A1BG", "A2M", "AAAS"], "counts": [3, 1, 7]}},
    "two cells, another pool and depth": {
        "value": {"genes": ["A1BG", "A2M"], "counts": [[3, 1], [0, 5]], "pool": "max", "target": "f2"}
    },
    "sparse cells": {
        "value": {"cells": [{"genes": ["A1BG"], "counts": [3]}, {"genes": ["AAAS", "A2M"], "counts": [2, 2]}]}
    },
}

V2_BODY: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "description": "CSR cells: indptr INT64 (cells + 1,), gene_ids INT32 (nnz,), counts FP32 (nnz,).",
    "properties": {
        "id": {"type": "string", "default": ""},
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"enum": ["indptr", "gene_ids", "counts"]},
                    "datatype": {"enum": ["INT64", "INT32", "FP32"]},
                    "shape": {"type": "array", "items": {"type": "integer"}},
                    "data": {"type": "array", "items": {"type": "number"}},
                    "parameters": {
                        "type": "object",
                        "description": "binary_data_size, of the binary extension.",
                    },
                },
            },
        },
        "parameters": {"type": "object", "properties": CONVENTIONS},
        "outputs": {"type": "array", "items": {"type": "object"}},
    },
}

V2_EXAMPLES: dict[str, Any] = {
    "two cells": {
        "value": {
            "id": "1",
            "inputs": [
                {"name": "indptr", "datatype": "INT64", "shape": [3], "data": [0, 2, 3]},
                {"name": "gene_ids", "datatype": "INT32", "shape": [3], "data": [0, 7, 2]},
                {"name": "counts", "datatype": "FP32", "shape": [3], "data": [3, 1, 5]},
            ],
            "parameters": {"pool": "all", "target": "t4"},
        }
    }
}

SCFOUNDATION_BODY: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    # No example: its row would have as many numbers as the model has genes, and a cut one is refused.
    "description": (
        f"The public scFoundation API's. Each option is an input of one text, such as "
        '{"name": "output_type", "datatype": "BYTES", "shape": [1], "data": ["cell"]}; '
        f"{TABLE} is the cells, FP32 of shape [cells, genes], a row with a number for each gene of /v1/vocabulary in "
        "its order."
    ),
    "properties": {
        "id": {"default": "", "description": "Whatever it is comes back as text."},
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape", "data"],
                "properties": {
                    "name": {"enum": [*OPTIONS, TABLE]},
                    "datatype": {"enum": ["BYTES", "FP32"]},
                    "shape": {"type": "array", "items": {"type": "integer"}},
                    "data": {"type": "array"},
                },
            },
        },
    },
}

INDEX_BODY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "ready": {"type": "boolean", "default": False, "description": "Only models that are ready."}
    },
}
INDEX_EXAMPLES: dict[str, Any] = {"those that are ready": {"value": {"ready": True}}}

H5AD = {"type": "string", "format": "binary", "description": "An h5ad with raw counts."}

PLACES = {
    "type": "array",
    "items": {"type": ["number", "null"]},
    "description": "One a cell; null for a cell without counts.",
}
UMAP_ANSWER: dict[str, Any] = {
    "description": "Where each cell lies, and the obs columns with 2 to 50 values.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["x", "y", "columns"],
                "properties": {
                    "x": PLACES,
                    "y": PLACES,
                    "columns": {
                        "type": "object",
                        "additionalProperties": {
                            "type": "object",
                            "required": ["categories", "codes"],
                            "properties": {
                                "categories": {"type": "array", "items": {"type": "string"}},
                                "codes": {
                                    "type": "array",
                                    "items": {"type": "integer", "minimum": -1},
                                    "description": "Of each cell, its position in categories; -1 for none.",
                                },
                            },
                        },
                    },
                },
            }
        }
    },
}


def described(
    schema: dict[str, Any],
    examples: dict[str, Any],
    media_type: str = "application/json",
    required: bool = True,
) -> dict[str, Any]:
    """``openapi_extra`` of a route with such a body."""
    content = {media_type: {"schema": schema, "examples": examples}}
    return {"requestBody": {"required": required, "content": content}}


def embed_description() -> dict[str, Any]:
    """``openapi_extra`` of ``POST /v1/embed``: its bodies, and the query that goes with those that are not JSON."""
    extra = described(NATIVE_BODY, NATIVE_EXAMPLES)
    extra["requestBody"]["content"][arrow.MEDIA_TYPE] = {
        "schema": {"type": "string", "format": "binary", "description": arrow.COLUMNS}
    }
    extra["requestBody"]["content"][h5ad.MEDIA_TYPE] = {"schema": H5AD}
    extra["parameters"] = conventions_in_query()
    return extra


def umap_description() -> dict[str, Any]:
    """``openapi_extra`` of ``POST /v1/umap``."""
    return described(H5AD, {}, h5ad.MEDIA_TYPE) | {"parameters": conventions_in_query()}


def conventions_in_query() -> list[dict[str, Any]]:
    """``pool`` and ``target`` as parameters."""
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in (CONVENTIONS | MODEL).items()
    ]
