"""100,000 fuzzed requests to a real `cellfoundry serve`, right ones among them.

    python benchmarks/soak/fuzz_endpoint.py --requests 100000 --out result.json

Eight kept-alive connections send tensors whose shapes, sizes and offsets lie, odd JSON, damaged Arrow streams and h5ad
files, the public scFoundation form, values of the schemas of /openapi.json, odd routes and headers, and frames that
lie. Of every answer is checked: no 5xx, an error is {"error": sentence} and names no file or code of the server; of
right requests in between, that the same cells get the same bits, and new ones the engine's vectors within 1e-5. The
process must live, log no traceback, and its memory grow by less than 128 MB in the second half, when the code that
torch keeps for 1,024 shapes of matrices is there; what still grows are the cache, and results of the scFoundation form,
which wait to be fetched.

Request N of seed S is the same whenever it is made: --seed S --only N sends it alone and prints both sides.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from fuzz_bodies import Right
from fuzz_connection import Answer, Connection, ConnectionLost
from fuzz_probe import Probe
from fuzz_requests import KINDS, probe
from soak_server import GENES, Served, make_model, served

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.engines import open_engine
from cellfoundry_serving.engines.base import Engine

CONNECTIONS = 8
MEMORY_MB = 128
TOLERANCE = 1e-5
LEAKS = re.compile(
    rb"Traceback|site-packages|cellfoundry_serving|\.py\b|/(tmp|home|usr|var|etc|root|opt)/|cells\.h5ad|task\.json"
)
MOST_FINDINGS = 50
TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n(?:[ |].*\n|\n)*(.*)$", re.MULTILINE)
"""Its last line says what was raised."""


@dataclass
class Run:
    """What came of the requests so far.

    Attributes:
        answers: by kind and status; "no answer" where frames were wrong and the connection just ended.
        findings: what should not be, with the request's number.
        same_bits: new cells whose vectors were the engine's to the last bit.
        memory_MB: after each twentieth of the requests.
    """

    answers: dict[str, Counter[str]] = field(
        default_factory=lambda: {kind: Counter() for kind in [*KINDS, "h5ad"]}
    )
    findings: list[str] = field(default_factory=list)
    same_bits: int = 0
    memory_MB: list[float] = field(default_factory=list)
    first: bytes | None = None

    def found(self, number: int, kind: str, what: str) -> None:
        """Notes a finding."""
        self.findings.append(f"request {number} ({kind}): {what}")
        print(self.findings[-1], file=sys.stderr, flush=True)


def right_requests(openapi: dict[str, Any], folder: Path) -> Right:
    """Three cells in all forms."""
    rng = np.random.default_rng(0)
    lengths = np.array([5, 40, 17])
    gene_ids = np.concatenate([np.sort(rng.choice(len(GENES), n, replace=False)) for n in lengths]).astype(
        "<i4"
    )
    counts = rng.integers(1, 50, lengths.sum()).astype("<f4")
    indptr = np.cumsum([0, *lengths], dtype="<i8")
    names = pa.ListArray.from_arrays(indptr.astype("i4"), pa.array([GENES[gene] for gene in gene_ids]))
    table = pa.table(
        {"genes": names, "counts": pa.ListArray.from_arrays(indptr.astype("i4"), pa.array(counts))}
    )
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    matrix = sp.csr_matrix((counts, gene_ids, indptr), shape=(3, len(GENES)))
    anndata.AnnData(matrix, var=pd.DataFrame(index=list(GENES))).write_h5ad(folder / "fuzzed.h5ad")
    h5ad = (folder / "fuzzed.h5ad").read_bytes()
    return Right(indptr, gene_ids, counts, GENES, stream.getvalue(), h5ad, openapi)


def check(run: Run, number: int, sent: Probe, answer: Answer, engine: Engine) -> None:
    """Notes what is wrong with an answer."""
    run.answers[sent.kind][str(answer.status)] += 1
    if answer.status >= 500:
        run.found(number, sent.kind, f"status {answer.status}: {answer.body[:200]!r}")
    form = answer.headers.get("content-type", "")
    is_text = form.startswith(("application/json", "text/"))  # the bytes of vectors may spell anything
    if is_text and (leak := LEAKS.search(answer.body)):
        run.found(number, sent.kind, f"the answer tells {leak[0]!r}: {answer.body[:200]!r}")
    if answer.status >= 400 and sent.method != "HEAD" and not is_error(answer.body):
        run.found(number, sent.kind, f"an error in another form: {answer.body[:200]!r}")
    if sent.cells is not None:
        check_vectors(run, number, sent, answer, engine)


def is_error(body: bytes) -> bool:
    """Whether it is ``{"error": one sentence}`` of a length that a person reads."""
    try:
        document = json.loads(body)
    except ValueError:
        return False
    if (
        not isinstance(document, dict)
        or list(document) != ["error"]
        or not isinstance(document["error"], str)
    ):
        return False
    return 0 < len(document["error"]) < 500 and "\n" not in document["error"]


def check_vectors(run: Run, number: int, sent: Probe, answer: Answer, engine: Engine) -> None:
    """Compares the vectors of a right request."""
    assert sent.cells is not None
    if answer.status != 200:
        run.found(number, sent.kind, f"a right request got {answer.status}: {answer.body[:200]!r}")
        return
    tensor = answer.body[int(answer.headers["inference-header-content-length"]) :]
    if sent.kind == "good":
        run.first = run.first or tensor
        if tensor != run.first:
            run.found(number, sent.kind, "the same cells got other bits than at first")
    indptr, gene_ids, counts = sent.cells
    expected = engine.encode(CellBatch(indptr, gene_ids, counts, np.arange(len(indptr) - 1)))
    got = np.frombuffer(tensor, "<f4").reshape(expected.shape)
    run.same_bits += sent.kind != "good" and np.array_equal(got, expected)
    if not np.allclose(got, expected, rtol=0, atol=TOLERANCE):
        run.found(number, sent.kind, f"vectors differ by {np.abs(got - expected).max()}")


async def client(
    run: Run, server: Served, numbers: Iterator[int], right: Right, seed: int, engine: Engine
) -> None:
    """Sends the next number's request on a connection of its own, until there are none."""
    connection = Connection(server.port)
    for number in numbers:
        sent = probe(seed, number, right)
        try:
            answers = await connection.exchange(sent)
        except ConnectionLost as error:
            run.found(number, sent.kind, str(error))
            answers = []
        if not answers:
            run.answers[sent.kind]["no answer"] += 1
        for answer in answers:
            check(run, number, sent, answer, engine)
        if server.ended():
            run.found(number, sent.kind, "the endpoint's process has ended")
        if server.ended() or len(run.findings) >= MOST_FINDINGS:
            break
    await connection.close()


def counted(run: Run, server: Served, requests: int) -> Iterator[int]:
    """Numbers of the requests; notes memory and progress on the way."""
    for number in range(requests):
        yield number
        if (number + 1) % max(1, requests // 20) == 0 and not server.ended():
            run.memory_MB.append(round(server.memory_MB(), 1))
            print(f"{number + 1}/{requests}, {run.memory_MB[-1]:.0f} MB", file=sys.stderr, flush=True)


async def clients(run: Run, server: Served, requests: int, seed: int, engine: Engine, right: Right) -> None:
    """All connections at once."""
    numbers = counted(run, server, requests)
    await asyncio.gather(*(client(run, server, numbers, right, seed, engine) for _ in range(CONNECTIONS)))


def soak(folder: Path, requests: int, seed: int) -> dict[str, Any]:
    """Starts an endpoint, fuzzes it and gives the result; "findings" is empty where all is well."""
    began = time.monotonic()
    make_model(folder / "model", seed=0)
    engine = open_engine(folder / "model", "torch")
    run = Run()
    with served(str(folder / "model"), folder / "log") as server:
        right = right_requests(httpx.get(server.url + "/openapi.json").json(), folder)
        asyncio.run(clients(run, server, requests, seed, engine, right))
        half = run.memory_MB[(len(run.memory_MB) - 1) // 2]
        if max(run.memory_MB) > half + MEMORY_MB:
            run.findings.append(f"memory grew from {half} to {max(run.memory_MB)} MB in the second half")
        server.process.terminate()
        if (code := server.process.wait(60)) != 0:
            run.findings.append(f"the endpoint ended with {code}")
    log = (folder / "log").read_text(errors="replace")
    for raised in sorted(set(TRACEBACK.findall(log))):
        run.findings.append(f"the log has a traceback: {raised}")
    return {
        "soak": "endpoint fuzzed over HTTP",
        "requests": requests,
        "answers": sum(sum(kind.values()) for kind in run.answers.values()),
        "answers_5xx": sum(
            n for kind in run.answers.values() for status, n in kind.items() if status[0] == "5"
        ),
        "findings": run.findings,
        "by_kind_and_status": {kind: dict(sorted(of.items())) for kind, of in run.answers.items() if of},
        "new_cells_with_the_engines_bits": run.same_bits,
        "memory_MB_each_twentieth": run.memory_MB,
        "memory_MB_allowed_in_second_half": MEMORY_MB,
        "connections": CONNECTIONS,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
    }


def replay(folder: Path, seed: int, number: int) -> None:
    """Sends one request to an endpoint of its own and prints both sides."""
    make_model(folder / "model", seed=0)
    with served(str(folder / "model"), folder / "log") as server:
        right = right_requests(httpx.get(server.url + "/openapi.json").json(), folder)
        sent = probe(seed, number, right)
        print(sent.kind, *(piece[:2000] for piece in sent.pieces[:20]), sep="\n")
        print(asyncio.run(Connection(server.port).exchange(sent)))
    print((folder / "log").read_text(errors="replace"))


def main() -> None:
    """Run the soak and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="send this one request alone and print both sides")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only is not None:
            replay(Path(folder), arguments.seed, arguments.only)
            return
        result = soak(Path(folder), arguments.requests, arguments.seed)
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    print(text, end="")
    sys.exit(bool(result["findings"]))


if __name__ == "__main__":
    main()
