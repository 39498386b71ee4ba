"""Ten times the nominal rate for a minute: what is too much is refused at once, what is accepted comes in time.

    python benchmarks/soak/overload.py --seconds 60 --out result.json

An endpoint without a cache serves a model over cells of a thousand genes, one a request; a process of its own asks it
over loopback, and its latencies count from the instant at which a request was due. First closed-loop clients find the
capacity; the nominal rate is 0.7 of it, and its p99 is measured. `--max-wait` is then set to 0.6 of that p99, as an
operator would who wants answers within twice of it; after a while at the nominal rate ten times as much is offered.
Bars: a refusal (429) within 50 ms at p99, accepted p99 within twice the nominal one, and memory that grows by less than
64 MB after the first third of the time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from soak_server import CONFIG, Served, make_model, served

from cellfoundry_bench.load_generator import generate
from cellfoundry_bench.open_loop import Offered, offer
from cellfoundry_data.vocabulary import Vocabulary
from cellfoundry_serving.client import infer_body
from cellfoundry_serving.endpoint.v2 import HEADER_LENGTH
from cellfoundry_serving.export.check import random_cells

GENES_OF_A_CELL = 1000
CLIENTS = 8
NOMINAL = 0.7
"""Of the capacity: nearer to it every queue grows long."""
MOST_WAIT = 0.6
"""Of the nominal p99: a request waits for the batch that runs, and for what else is in its own, so twice at most."""
TIMES = 10
REFUSED_S = 0.05
MEMORY_MB = 64


def soak(folder: Path, seconds: float, width: int, depth: int) -> dict[str, Any]:
    """All three measurements; the result, with what each bar is and whether it is met."""
    genes = Vocabulary.named("scfoundation").genes
    config = replace(
        CONFIG, n_genes=len(genes), encoder_width=width, encoder_depth=depth, encoder_heads=width // 32
    )
    make_model(folder / "model", 0, config)
    request = one_cell_request(len(genes))
    with served(str(folder / "model"), folder / "log", "--cache-bytes", "0") as server:
        generate(request, server.port, CLIENTS, 5)
        capacity = generate(request, server.port, CLIENTS, max(10, int(20 * seconds / CLIENTS))).per_second
        rate = NOMINAL * capacity
        nominal = offer(request, server.port, rate, seconds)
    wait_s = MOST_WAIT * nominal.latency(99)
    options = ("--cache-bytes", "0", "--max-wait", f"{wait_s:.4f}")
    with served(str(folder / "model"), folder / "log", *options) as server:
        again = offer(request, server.port, rate, seconds / 4)  # from which it learns how fast its engine is
        with Memory(server) as memory:
            overload = offer(request, server.port, TIMES * rate, seconds)
    return {
        "soak": "endpoint offered ten times its nominal rate",
        "seconds": seconds,
        "capacity_per_s": round(capacity, 1),
        "nominal": facts(nominal),
        "max_wait_ms": round(wait_s * 1e3, 2),
        "nominal_with_it": facts(again),
        "overload": facts(overload),
        "memory_MB": memory.summary(),
        "bars": {
            "refused p99 < 50 ms": bool(overload.latency(99, 429) < REFUSED_S),
            "accepted p99 <= 2x nominal p99": bool(overload.latency(99) <= 2 * nominal.latency(99)),
            "answers are 200 or 429": overload.count(200) + overload.count(429) == len(overload.answers),
            "memory flat": memory.is_flat(),
        },
        "model": f"encoder width {width}, depth {depth}; {GENES_OF_A_CELL} genes a cell, one cell a request",
    }


def one_cell_request(n_genes: int) -> bytes:
    """A whole HTTP request."""
    body, header_length = infer_body(random_cells(n_genes, (GENES_OF_A_CELL,), 0), {})
    lines = (
        "POST /v2/models/cellfoundry/infer HTTP/1.1",
        "Host: soak",
        f"Content-Length: {len(body)}",
        f"{HEADER_LENGTH}: {header_length}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def facts(offered: Offered) -> dict[str, Any]:
    """What was offered and answered, latencies in ms from when a request was due."""
    statuses = Counter(str(answer.status) for answer in offered.answers)
    answered_s = max((answer.due_s + answer.latency_s for answer in offered.answers), default=0.0)
    latencies = {
        f"latency_ms_of_{status}": {
            f"p{percent}": round(offered.latency(percent, int(status)) * 1e3, 2)
            for percent in (50, 90, 99, 100)
        }
        for status in sorted(statuses)
    }
    return {
        "offered_per_s": round(offered.rate, 1),
        "answered_per_s": round(offered.count(200) / answered_s, 1),
        "answers": dict(sorted(statuses.items())),
        **latencies,
    }


class Memory:
    """Resident memory of the endpoint, ten times a second inside."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._over = threading.Event()
        self._seen: list[float] = []
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self._seen.append(self._server.memory_MB())

    def summary(self) -> dict[str, float]:
        """At the start, at a third, the most after it, and at the end."""
        third = len(self._seen) // 3
        seen = {
            "start": self._seen[0],
            "at_a_third": self._seen[third],
            "most_after": max(self._seen[third:]),
        }
        return {name: round(value, 1) for name, value in (seen | {"end": self._seen[-1]}).items()}

    def is_flat(self) -> bool:
        """Whether it grew by less than MEMORY_MB after a third of the time."""
        summary = self.summary()
        return summary["most_after"] - summary["at_a_third"] < MEMORY_MB


def main() -> None:
    """Run the soak and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--width", type=int, default=128, help="of the model's encoder, a multiple of 32")
    parser.add_argument("--depth", type=int, default=4, help="layers of the model's encoder")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), arguments.seconds, arguments.width, arguments.depth)
    result["total_seconds"] = round(time.monotonic() - began, 1)
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
