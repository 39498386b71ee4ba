"""Closed-loop gRPC load of one client from a process of its own.

The ModelInfer message arrives ready-made on standard input. Prints a JSON list: seconds of each call.
    python -m cellfoundry_bench.serving.grpc_load HOST:PORT CALLS < message
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import grpc

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.sources import DEFAULT_NAME
from cellfoundry_serving.endpoint.v2_grpc.messages import message_class

METHOD = "/inference.GRPCInferenceService/ModelInfer"


def infer_message(cells: CellBatch, model: str = DEFAULT_NAME) -> bytes:
    """A ModelInferRequest of ``model`` with CSR cells as raw contents."""
    tensors = (
        ("indptr", "INT64", cells.indptr.astype("<i8")),
        ("gene_ids", "INT32", cells.gene_ids.astype("<i4")),
        ("counts", "FP32", cells.counts.astype("<f4")),
    )
    inputs = [
        {"name": name, "datatype": datatype, "shape": list(array.shape)} for name, datatype, array in tensors
    ]
    message = message_class("ModelInferRequest")(
        model_name=model,
        inputs=inputs,
        raw_input_contents=[array.tobytes() for _, _, array in tensors],
    )
    content: bytes = message.SerializeToString()
    return content


def call(message: bytes, address: str, calls: int) -> list[float]:
    """Run the client as a process against ``address`` and wait for it; seconds of each call."""
    command = [sys.executable, "-m", __spec__.name, address, str(calls)]
    done = subprocess.run(command, input=message, capture_output=True, check=True, timeout=300)
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def main() -> None:
    """Entry point of the client's process; an error of the endpoint ends it."""
    address, calls = sys.argv[1], int(sys.argv[2])
    message = sys.stdin.buffer.read()
    seconds = []
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(METHOD)
        infer(message)  # the first call opens the connection
        for _ in range(calls):
            start = time.perf_counter()
            infer(message)
            seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
