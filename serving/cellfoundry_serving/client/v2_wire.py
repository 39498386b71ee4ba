"""Cells and embeddings as binary tensors of the Open Inference Protocol V2."""

from __future__ import annotations

import json

import httpx
import numpy as np

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client.call import Call
from cellfoundry_serving.client.models import model_path
from cellfoundry_serving.client.rows import Asked, Rows, of_cells
from cellfoundry_serving.endpoint.v2 import HEADER_LENGTH


def infer_call(cells: CellBatch, asked: Asked) -> Call[Rows]:
    """Embeddings of ``cells`` over the vocabulary of the model asked for, which has a name here."""
    assert asked.model is not None
    body, header_length = infer_body(cells, asked.conventions)

    def read(response: httpx.Response) -> Rows:
        return of_cells(read_rows(response), len(cells))

    path = f"{model_path(asked.model, asked.version)}/infer"
    return Call("POST", path, read, headers={HEADER_LENGTH: str(header_length)}, content=body)


def infer_body(cells: CellBatch, parameters: dict[str, str]) -> tuple[bytes, int]:
    """A V2 request with ``cells`` as binary CSR tensors, answered in binary, and the length of its JSON part."""
    tensors = (
        ("indptr", "INT64", cells.indptr.astype("<i8")),
        ("gene_ids", "INT32", cells.gene_ids.astype("<i4")),
        ("counts", "FP32", cells.counts.astype("<f4")),
    )
    inputs = [
        {
            "name": name,
            "datatype": datatype,
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, datatype, array in tensors
    ]
    document = {"inputs": inputs, "parameters": parameters | {"binary_data_output": True}}
    header = json.dumps(document).encode()
    return b"".join([header, *(array.tobytes() for _, _, array in tensors)]), len(header)


def read_rows(response: httpx.Response) -> Rows:
    """The one output of an answer, which is binary."""
    length = int(response.headers[HEADER_LENGTH])
    answer = json.loads(response.content[:length])
    shape = answer["outputs"][0]["shape"]
    return Rows(np.frombuffer(response.content, "<f4", offset=length).reshape(shape), answer["model_version"])
