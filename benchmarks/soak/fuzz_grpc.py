"""Fuzzed gRPC calls to a real `cellfoundry serve`, right ones among them.

    python benchmarks/soak/fuzz_grpc.py --calls 20000 --out result.json

Every call of the protocol gets messages whose tensors lie, whose fields are of other types, and bytes that are no
message. No answer may be a failure of the server (INTERNAL, UNKNOWN, UNAVAILABLE) or name a file or code of it, the
same right cells must get the same bits, and the process must live and log no traceback. Call N of seed S is always the
same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from fuzz_bodies import Right, v2_inputs, wrong_tensors
from fuzz_endpoint import CONNECTIONS, LEAKS, TRACEBACK, right_requests
from fuzz_values import INTEGERS, TEXTS, changed_bytes
from google.protobuf.message import Message
from soak_server import Served, make_model, served

from cellfoundry_serving.endpoint.v2_grpc.messages import SERVICE, message_class

CALLS = [method.name for method in SERVICE.methods]
FAILURES = {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS", "CANCELLED", "DEADLINE_EXCEEDED"}
PATIENCE_S = 120.0


def infer_message(inputs: list[dict[str, Any]], data: list[bytes]) -> Message:
    """A ModelInfer request; what no message can hold is left out."""
    message = message_class("ModelInferRequest")(model_name="cellfoundry", raw_input_contents=data)
    for item in inputs:
        tensor = message.inputs.add()
        for field in ("name", "datatype"):
            try:
                setattr(tensor, field, item.get(field))
            except (TypeError, ValueError):
                continue
        shape = item.get("shape")
        sizes = shape if isinstance(shape, list) else []
        tensor.shape.extend(size for size in sizes if type(size) is int and -(2**63) <= size < 2**63)
    return message


def call(seed: int, number: int, right: Right) -> tuple[str, bytes, bool]:
    """Name of the call, bytes of its request, and whether it is a right one."""
    rng = random.Random(f"grpc {seed}/{number}")
    if rng.random() < 0.05:
        return "ModelInfer", infer_message(*v2_inputs(right)).SerializeToString(), True
    name = rng.choice((*CALLS, *["ModelInfer"] * 20, "ModelStreamInfer", "ModelStreamInfer"))
    if name not in ("ModelInfer", "ModelStreamInfer"):
        fields = "".join(rng.choice(TEXTS[:12]) for _ in range(2)).encode("utf-8", "replace")
        return (
            name,
            rng.choice((b"", rng.randbytes(20), b"\x0a\x0bcellfoundry", b"\x0a\x03" + fields[:3])),
            False,
        )
    inputs, data = v2_inputs(right)
    for _ in range(rng.randrange(4)):
        wrong_tensors(rng, inputs, data)
    message = infer_message(inputs, data)
    if rng.random() < 0.3:
        parameter = message.parameters[rng.choice(("pool", "target", "binary_data_output", "x"))]  # type: ignore[attr-defined]
        if rng.random() < 0.5:
            parameter.string_param = rng.choice(TEXTS[:10]).encode("utf-8", "replace").decode()
        else:
            parameter.int64_param = rng.choice([n for n in INTEGERS if -(2**63) <= n < 2**63])
    if rng.random() < 0.3:
        message.inputs[0].contents.int64_contents.extend([0, 1, 2])  # type: ignore[attr-defined]
    sent = message.SerializeToString()
    return name, changed_bytes(rng, sent) if rng.random() < 0.5 else sent, False


async def client(
    server: Served, numbers: Iterator[int], right: Right, seed: int, run: dict[str, Any]
) -> None:
    """Makes the next number's call until there are none."""
    async with grpc.aio.insecure_channel(
        server.grpc, options=(("grpc.use_local_subchannel_pool", 1),)
    ) as channel:
        for number in numbers:
            name, sent, is_right = call(seed, number, right)
            path = f"/{SERVICE.full_name}/{name}"
            try:
                if name == "ModelStreamInfer":
                    answers = channel.stream_stream(path)(iter([sent, sent]), timeout=PATIENCE_S)
                    answer = b"".join([part async for part in answers])
                else:
                    answer = await channel.unary_unary(path)(sent, timeout=PATIENCE_S)
                code, told = "OK", answer
            except grpc.aio.AioRpcError as error:
                code, told = error.code().name, (error.details() or "").encode()
            run["answers"][f"{name} {code}"] += 1
            if code in FAILURES or LEAKS.search(told) or (is_right and code != "OK"):
                run["findings"].append(f"call {number} ({name}): {code} {told[:200]!r}")
            if is_right and code == "OK":
                run["first"] = run["first"] or told
                if told != run["first"]:
                    run["findings"].append(f"call {number}: the same cells got other bits than at first")
            if server.ended() or len(run["findings"]) > 50:
                break


async def clients(server: Served, calls: int, seed: int, right: Right, run: dict[str, Any]) -> None:
    """All connections at once."""
    numbers = iter(range(calls))
    await asyncio.gather(*(client(server, numbers, right, seed, run) for _ in range(CONNECTIONS)))


def soak(folder: Path, calls: int, seed: int) -> dict[str, Any]:
    """Starts an endpoint, fuzzes it and gives the result; "findings" is empty where all is well."""
    began = time.monotonic()
    make_model(folder / "model", seed=0)
    run: dict[str, Any] = {"answers": Counter(), "findings": [], "first": None}
    with served(str(folder / "model"), folder / "log") as server:
        right = right_requests({}, folder)
        asyncio.run(clients(server, calls, seed, right, run))
        if server.ended():
            run["findings"].append("the endpoint's process has ended")
        memory = server.memory_MB()
        server.process.terminate()
        if (code := server.process.wait(60)) != 0:
            run["findings"].append(f"the endpoint ended with {code}")
    log = (folder / "log").read_text(errors="replace")
    run["findings"] += [
        f"the log has a traceback: {raised}" for raised in sorted(set(TRACEBACK.findall(log)))
    ]
    return {
        "soak": "endpoint fuzzed over gRPC",
        "calls": calls,
        "findings": run["findings"],
        "by_call_and_code": dict(sorted(run["answers"].items())),
        "memory_MB_at_the_end": round(memory, 1),
        "connections": CONNECTIONS,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Run the soak and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), arguments.calls, arguments.seed)
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")
    sys.exit(bool(result["findings"]))


if __name__ == "__main__":
    main()
