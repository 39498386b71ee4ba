"""Bodies of requests that are nearly right: V2 tensors, JSON, Arrow, h5ad, the scFoundation form, and from schemas."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from fuzz_probe import Headers
from fuzz_values import INTEGERS, TEXTS, changed, changed_bytes, nasty

ARROW, HDF5 = "application/vnd.apache.arrow.stream", "application/x-hdf5"
HEADER_LENGTH = "Inference-Header-Content-Length"
NASTY_FLOATS = np.array([np.nan, np.inf, -np.inf, 1e-45, 1e-39, 3.4e38, -1, 0.5, -0.0, 2**24 + 1], "<f4")
NASTY_INT64 = np.array([number for number in INTEGERS if -(2**63) <= number < 2**63], "<i8")


@dataclass(frozen=True)
class Right:
    """Requests that are answered with 200, to start from.

    Attributes:
        indptr: int64 (cells + 1,) of their cells.
        gene_ids: int32 (nnz,).
        counts: float32 (nnz,).
        genes: names of the model's genes.
        arrow: stream with the cells, genes by name.
        h5ad: file with the cells.
        openapi: description of all routes.
    """

    indptr: np.ndarray
    gene_ids: np.ndarray
    counts: np.ndarray
    genes: tuple[str, ...]
    arrow: bytes
    h5ad: bytes
    openapi: dict[str, Any]


def v2_body(right: Right) -> tuple[bytes, Headers]:
    """The cells as binary tensors, answered in binary."""
    inputs, data = v2_inputs(right)
    document = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    return with_tensors(document, data)


def v2_inputs(right: Right) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Inputs of a V2 request and their bytes."""
    arrays = (
        ("indptr", "INT64", right.indptr),
        ("gene_ids", "INT32", right.gene_ids),
        ("counts", "FP32", right.counts),
    )
    inputs = [
        {"name": name, "datatype": datatype, "shape": [len(a)], "parameters": {"binary_data_size": a.nbytes}}
        for name, datatype, a in arrays
    ]
    return inputs, [a.tobytes() for _, _, a in arrays]


def with_tensors(document: Any, data: list[bytes]) -> tuple[bytes, Headers]:
    """A V2 body of JSON and tensors."""
    head = json.dumps(document).encode()
    return b"".join([head, *data]), {HEADER_LENGTH: str(len(head))}


def wrong_v2(rng: random.Random, right: Right) -> tuple[bytes, Headers]:
    """Binary tensors of which one to three things are wrong, and now and then what is told of them."""
    inputs, data = v2_inputs(right)
    for _ in range(rng.randint(1, 3)):
        wrong_tensors(rng, inputs, data)
    document: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    if rng.random() < 0.15:
        document = changed(rng, document)
    body, headers = with_tensors(document, data)
    if rng.random() < 0.15:
        headers[HEADER_LENGTH] = rng.choice(
            (*map(str, INTEGERS), "", " 7", "+7", "7 ", "0x10", "1e2", "\xb2", "7, 7", "seven")
        )
    return body, headers


def wrong_tensors(rng: random.Random, inputs: list[dict[str, Any]], data: list[bytes]) -> None:
    """Makes one thing wrong in a request's inputs, or in their bytes."""
    which = rng.randrange(3)
    item = rng.choice(inputs)
    kind = rng.randrange(9)
    if kind == 0:
        item["shape"] = rng.choice(([rng.choice(INTEGERS)], [rng.choice(INTEGERS)] * 2, [], nasty(rng)))
    elif kind == 1:
        item["parameters"] = {"binary_data_size": rng.choice((*INTEGERS, None, "8", 8.0, True))}
    elif kind == 2:
        data[which] = changed_bytes(rng, data[which])
    elif kind == 3:
        values = NASTY_INT64 if which == 0 else NASTY_FLOATS
        size = values.dtype.itemsize
        place = size * rng.randrange(max(1, len(data[which]) // size))
        value = values[rng.randrange(len(values))].tobytes()
        data[which] = data[which][:place] + value + data[which][place + size :]
    elif kind == 4:
        item["name"] = rng.choice(("indptr", "gene_ids", "counts", *TEXTS))
    elif kind == 5:
        item["datatype"] = rng.choice(("INT32", "INT64", "FP32", "FP16", "BOOL", *TEXTS))
    elif kind == 6:
        inputs.append(dict(item))
    elif kind == 7:
        wrapping_offsets(rng, inputs, data)
    else:
        data[which] += rng.randbytes(rng.choice((1, 4, 8, 1000)))


def wrapping_offsets(rng: random.Random, inputs: list[dict[str, Any]], data: list[bytes]) -> None:
    """Offsets whose differences in int64 wrap around, so that they look as if they never fell."""
    nnz = len(data[1]) // 4
    step = rng.choice((2**62, 2**63 - 1, 2**40, 2**31, 2**33 + 1))
    offsets = [0, step, rng.choice((-(2**63) + rng.randrange(1, 9), step - 2**64 + 2**63, nnz + 1, -1)), nnz]
    data[0] = np.array([(offset + 2**63) % 2**64 - 2**63 for offset in offsets], "<i8").tobytes()
    inputs[0].update(
        name="indptr", datatype="INT64", shape=[4], parameters={"binary_data_size": len(data[0])}
    )


def v2_json(right: Right) -> dict[str, Any]:
    """The cells as V2 tensors in JSON."""
    inputs, _ = v2_inputs(right)
    for item, array in zip(inputs, (right.indptr, right.gene_ids, right.counts), strict=True):
        item["data"] = array.tolist()
        del item["parameters"]
    return {"id": "1", "inputs": inputs, "parameters": {"pool": "all"}, "outputs": [{"name": "embedding"}]}


def native_json(right: Right) -> dict[str, Any]:
    """The cells with names of genes."""
    cells = []
    for first, last in zip(right.indptr[:-1], right.indptr[1:], strict=True):
        names = [right.genes[gene] for gene in right.gene_ids[first:last]]
        cells.append({"genes": names, "counts": right.counts[first:last].tolist()})
    return {"cells": cells, "pool": "all", "target": "t4"}


def scfoundation(rng: random.Random, right: Right) -> dict[str, Any]:
    """The public API's form with one cell and options that fit."""
    is_total = rng.random() < 0.2
    columns = len(right.genes) + is_total
    options = {
        "input_type": rng.choice(("singlecell", "bulk")),
        "output_type": rng.choice(("cell", "cell", "gene", "gene_batch")),
        "pool_type": rng.choice(("all", "max")),
        "tgthighres": rng.choice(("t4", "f1", "a1")),
        "pre_normalized": "A" if is_total else rng.choice("FT"),
        "version": "0.1",
    }
    inputs: list[dict[str, Any]] = [
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [value]} for name, value in options.items()
    ]
    row = [rng.choice((0, 0, 1, 7)) for _ in range(columns)]
    inputs.append({"name": "data_numpy", "shape": [1, columns], "datatype": "FP32", "data": [[row]]})
    return {"inputs": inputs}


def sample(rng: random.Random, schema: dict[str, Any]) -> Any:
    """A value of a JSON schema as our OpenAPI page uses them; one in twelve parts is something else."""
    if rng.random() < 0.08:
        return nasty(rng)
    if "oneOf" in schema or "anyOf" in schema:
        return sample(rng, rng.choice(schema.get("oneOf") or schema["anyOf"]))
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        wanted = schema.get("required", [])
        properties = schema.get("properties", {})
        return {
            name: sample(rng, of) for name, of in properties.items() if name in wanted or rng.random() < 0.5
        }
    if kind == "array":
        return [sample(rng, schema.get("items", {})) for _ in range(rng.choice((0, 1, 1, 2, 3, 30)))]
    if kind == "string":
        is_depth = re.match(r"\^\[tfa\]", schema.get("pattern", ""))
        return rng.choice("tfa") + str(rng.choice(INTEGERS[:-1])) if is_depth else rng.choice(TEXTS)
    return rng.choice((0, 1, 3, 7, *INTEGERS, *(() if kind == "integer" else (1.0, 0.5))))
