"""SIGTERM and new versions while clients ask: no request that was accepted is lost, no answer mixes two versions.

    python benchmarks/soak/drain_endpoint.py --rounds 20 --out result.json

Each round of the first part starts a `cellfoundry serve`, lets eight clients ask it, four of them over gRPC, small and
large requests, on kept connections and on a new one for each, and sends SIGTERM at a random moment. A request over HTTP
is accepted when its last byte was written to an established connection while the port was still open, as /proc/net/tcp
tells; all those must be answered with the engine's vectors, and the process must end with 0. What is sent later may
find a closed connection. A call over gRPC must be answered, or told after SIGTERM that the server stops or was not
reached.

The second part puts new numbered versions beside those that one endpoint serves, and has them loaded in turn by V2's
call and by SIGHUP. Every request must be answered, with the vectors of the version that the answer names.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from soak_server import CONFIG, Served, make_model, served
from steady_calls import Called, Caller
from steady_clients import Asked, Client, asking, listens_until

from cellfoundry_bench.serving.grpc_load import infer_message
from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.client import infer_body
from cellfoundry_serving.endpoint.v2 import HEADER_LENGTH
from cellfoundry_serving.endpoint.v2_grpc.messages import ModelInferResponse
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.export.check import random_cells

CLIENTS = 8
MODELS = 4
"""With weights of their own; the versions take turns with them."""
NAME = "cells"
SIZES = ((5,), (40, 1), (200,) * 20)
"""Genes of the cells of each request that a client sends in turn."""
TOLERANCE = 1e-5
OPTIONS = ("--cache-bytes", "0", "--max-wait", "600")
"""Everything is computed, and nothing refused."""


class Soak:
    """Models, requests and the vectors that belong to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.cells = [
            random_cells(CONFIG.n_genes, sizes, seed + number) for number, sizes in enumerate(SIZES)
        ]
        self.requests = [v2_request(cells) for cells in self.cells]
        self.messages = [infer_message(cells, NAME) for cells in self.cells]
        self.vectors: list[list[np.ndarray]] = []
        for model in range(MODELS):
            make_model(folder / f"model{model}", seed=model)
            engine = open_engine(folder / f"model{model}", "torch")
            self.vectors.append([engine.encode(cells) for cells in self.cells])
        self._seen: list[Asked | Called] = []
        self._lock = threading.Lock()

    def clients(self, server: Served) -> list[Client | Caller]:
        """Half of them over gRPC; of each half keep their connections, and half of either send small requests only."""
        self._seen = []
        clients: list[Client | Caller] = []
        for number in range(CLIENTS // 2):
            keeps, sizes = number % 2 == 0, 2 + number % 4 // 2
            clients.append(Client(server.port, self.requests[:sizes], keeps, self._note))
            clients.append(Caller(server.grpc, self.messages[:sizes], keeps, self._note))
        return clients

    def _note(self, seen: Asked | Called) -> None:
        with self._lock:
            self._seen.append(seen)

    def seen(self) -> list[Asked | Called]:
        """What has been answered or lost so far."""
        with self._lock:
            return list(self._seen)

    def wait_for_answers(self, more: int) -> None:
        """Returns when so many more requests have been answered or lost."""
        wanted, deadline = len(self.seen()) + more, time.monotonic() + 120
        while len(self.seen()) < wanted:
            assert time.monotonic() < deadline, "the clients get no answers"
            time.sleep(0.002)

    def terminate_once(self) -> Counter[str]:
        """One process from its start to its end; what became of the requests.

        Raises AssertionError where an accepted one was lost, or an answer is wrong.
        """
        with served(f"{NAME}={self.folder / 'model0'}", self.folder / "log", *OPTIONS) as server:
            with asking(self.clients(server)):
                self.wait_for_answers(5 * CLIENTS)
                time.sleep(self.random.uniform(0, 0.3))
                terminated_at = time.monotonic()
                server.process.terminate()
                open_at = listens_until(server.port)
                assert server.process.wait(120) == 0, self.log()
            counts: Counter[str] = Counter()
            lost: list[str] = []
            for seen in self.seen():
                if isinstance(seen, Called):
                    counts[self._ended(seen, terminated_at, lost)] += 1
                    continue
                accepted = seen.sent_at < open_at
                if seen.status is not None:
                    self.check(seen, 0)
                elif accepted:
                    lost.append(f"{1e3 * (open_at - seen.sent_at):.1f} ms before the port closed")
                counts[
                    f"{'accepted' if accepted else 'later'}, {'answered' if seen.status else 'closed'}"
                ] += 1
            assert not lost, f"lost: {lost}; {counts}"
        return counts

    def _ended(self, called: Called, terminated_at: float, lost: list[str]) -> str:
        """How a call ended, for counting; ``lost`` takes those that were neither answered nor turned away."""
        if called.answer is not None:
            self.check(called, 0)
            return "gRPC, answered"
        if called.never_taken and called.ended_at > terminated_at:
            return "gRPC, turned away"
        since = 1e3 * (called.sent_at - terminated_at)
        lost.append(f"a call {since:.1f} ms after SIGTERM: {called.code.name} {called.details[:200]!r}")
        return "gRPC, lost"

    def reload_under_load(self, rounds: int) -> dict[str, Any]:
        """As many new versions as rounds, one after another.

        Raises AssertionError where a request is not answered by one version whole.
        """
        versions = self.folder / "versions"
        shutil.copytree(self.folder / "model0", versions / "1")
        with served(f"{NAME}={versions}", self.folder / "log", "--allow-load", *OPTIONS) as server:
            with asking(self.clients(server)):
                for number in range(2, rounds + 2):
                    self.wait_for_answers(self.random.randrange(CLIENTS * 3))
                    shutil.copytree(self.folder / f"model{(number - 1) % MODELS}", versions / f".{number}")
                    (versions / f".{number}").rename(versions / str(number))
                    load(server, number)
                    print(f"{number - 1}/{rounds} reloads", file=sys.stderr, flush=True)
                self.wait_for_answers(CLIENTS)
            by_version: Counter[int] = Counter()
            for seen in self.seen():
                by_version[self.check(seen, None)] += 1
            server.process.terminate()
            assert server.process.wait(120) == 0, self.log()
        return {"reloads": rounds, "answers": by_version.total(), "versions_that_answered": len(by_version)}

    def check(self, seen: Asked | Called, model: int | None) -> int:
        """The version that answered; AssertionError unless the vectors are those of ``model``, or of that version's."""
        version, got = called_for(seen) if isinstance(seen, Called) else asked_for(seen)
        of_model = self.vectors[(version - 1) % MODELS if model is None else model]
        expected = next(vectors for vectors in of_model if len(vectors) == len(got))
        assert np.allclose(got, expected, rtol=0, atol=TOLERANCE), (
            f"version {version} answered with other vectors"
        )
        return version

    def log(self) -> str:
        """The end of the endpoint's log."""
        return (self.folder / "log").read_text()[-2000:]


def asked_for(asked: Asked) -> tuple[int, np.ndarray]:
    """Version and vectors of an answer over HTTP; AssertionError where it is none."""
    assert asked.status == 200, f"a request was lost or refused: {asked.status} {asked.body[:200]!r}"
    length = int(asked.headers[HEADER_LENGTH.lower()])
    answer = json.loads(asked.body[:length])
    vectors = np.frombuffer(asked.body[length:], "<f4").reshape(answer["outputs"][0]["shape"])
    return int(answer["model_version"]), vectors


def called_for(called: Called) -> tuple[int, np.ndarray]:
    """Version and vectors of an answer over gRPC; AssertionError where it is none."""
    assert called.answer is not None, f"a call was lost or refused: {called.code.name} {called.details!r}"
    answer = ModelInferResponse.FromString(called.answer)
    vectors = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape)
    return int(answer.model_version), vectors


def v2_request(cells: CellBatch) -> bytes:
    """A whole HTTP request."""
    body, header_length = infer_body(cells, {})
    lines = (
        f"POST /v2/models/{NAME}/infer HTTP/1.1",
        "Host: soak",
        f"Content-Length: {len(body)}",
        f"{HEADER_LENGTH}: {header_length}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def load(server: Served, number: int) -> None:
    """Has a new version loaded and waits until it answers: by the V2 call, or by SIGHUP where the number is odd."""
    if number % 2:
        server.process.send_signal(signal.SIGHUP)
    else:
        httpx.post(f"{server.url}/v2/repository/models/{NAME}/load", timeout=120).raise_for_status()
    deadline = time.monotonic() + 120
    while httpx.get(f"{server.url}/v2/models/{NAME}", timeout=120).json()["versions"] != [str(number)]:
        assert time.monotonic() < deadline, f"version {number} is not loaded"
        time.sleep(0.01)


def soak(folder: Path, rounds: int, reloads: int, seed: int) -> dict[str, Any]:
    """Both parts; what they saw."""
    began = time.monotonic()
    soaked = Soak(folder, seed)
    requests: Counter[str] = Counter()
    for number in range(rounds):
        requests += soaked.terminate_once()
        print(f"{number + 1}/{rounds} SIGTERMs, {dict(requests)}", file=sys.stderr, flush=True)
    return {
        "soak": "endpoint drained and reloaded under load",
        "sigterms": rounds,
        "requests_by_when_they_were_sent": dict(sorted(requests.items())),
        "accepted_and_lost": requests["accepted, closed"] + requests["gRPC, lost"],
        "hot_reloads": soaked.reload_under_load(reloads),
        "clients": CLIENTS,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Run the soak and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(Path(folder), arguments.rounds, arguments.rounds, arguments.seed)
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
