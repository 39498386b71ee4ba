"""The same cells by everything that the endpoint speaks."""

from __future__ import annotations

import itertools

import grpc
import httpx
import numpy as np
import numpy.typing as npt

from cellfoundry_bench.serving.grpc_load import METHOD, infer_message
from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client import Client
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.server import running_with_grpc
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.sources import OpenedSource
from cellfoundry_serving.endpoint.v2_grpc.messages import message_class
from cellfoundry_serving.engines.base import Engine


def endpoint_answers(engine: Engine, batch: CellBatch) -> dict[str, npt.NDArray[np.float32]]:
    """Embeddings (cells, width) by the name of each form, computed anew each time."""
    named = [
        {
            "genes": [engine.vocab_genes[gene] for gene in batch.gene_ids[first:last]],
            "counts": batch.counts[first:last].tolist(),
        }
        for first, last in itertools.pairwise(batch.indptr)
    ]
    infer = message_class("ModelInferResponse").FromString
    with (
        running_with_grpc(Service([OpenedSource(engine)], Limits(cache_bytes=0))) as (url, address),
        Client(url) as v2,
        Client(url, wire="arrow") as arrow,
        grpc.insecure_channel(address) as channel,
    ):
        answer = channel.unary_unary(METHOD, response_deserializer=infer)(infer_message(batch))
        native = httpx.post(f"{url}/v1/embed", json={"cells": named}, timeout=600).json()["embedding"]
        return {
            "V2 over HTTP": v2.embed(batch),
            "V2 over gRPC": np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(len(batch), -1),
            "JSON": np.array(native, dtype=np.float32),
            "Arrow": arrow.embed(batch),
        }
