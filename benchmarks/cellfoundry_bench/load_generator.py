"""Closed-loop HTTP/1.1 load from a process of its own: each client sends its next request when it has the answer.

The whole request arrives ready-made on standard input and is sent as it is over kept-alive connections; nothing
but the answer's status and length is parsed, so that the generator takes little of the cores it shares with the
server. Prints one JSON object: seconds of each answered request, wall seconds, and how many were not 200.
    python -m cellfoundry_bench.load_generator PORT CLIENTS REQUESTS_PER_CLIENT < request
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass

HOST = "127.0.0.1"
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """What a run of the generator saw."""

    seconds: list[float]
    wall_s: float
    refused: int

    @property
    def per_second(self) -> float:
        """Answered requests per second of wall time."""
        return len(self.seconds) / self.wall_s


def generate(
    request: bytes, port: int, clients: int, requests_per_client: int, timeout_s: float = 120.0
) -> Load:
    """Run the generator as a process against ``port`` on loopback and wait for it."""
    command = [sys.executable, "-m", __spec__.name, str(port), str(clients), str(requests_per_client)]
    done = subprocess.run(command, input=request, capture_output=True, check=True, timeout=timeout_s)
    return Load(**json.loads(done.stdout))


async def _client(request: bytes, port: int, requests: int) -> tuple[list[float], int]:
    """Seconds of the requests answered with 200, and the number of others."""
    reader, writer = await asyncio.open_connection(HOST, port)
    seconds, refused = [], 0
    for _ in range(requests):
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(head)
        if length is None:
            raise ValueError("the answer has no Content-Length")
        await reader.readexactly(int(length[1]))
        if head.split(b" ", 2)[1] == b"200":
            seconds.append(time.perf_counter() - start)
        else:
            refused += 1
    writer.close()
    await writer.wait_closed()
    return seconds, refused


async def _run(request: bytes, port: int, clients: int, requests: int) -> Load:
    await _client(request, port, 1)  # the server's first answer is not what is measured
    start = time.perf_counter()
    answers = await asyncio.gather(*(_client(request, port, requests) for _ in range(clients)))
    wall_s = time.perf_counter() - start
    seconds = [second for client, _ in answers for second in client]
    return Load(seconds, wall_s, sum(refused for _, refused in answers))


def main() -> None:
    """Entry point of the generator's process."""
    port, clients, requests = map(int, sys.argv[1:])
    load = asyncio.run(_run(sys.stdin.buffer.read(), port, clients, requests))
    print(json.dumps({"seconds": load.seconds, "wall_s": load.wall_s, "refused": load.refused}))


if __name__ == "__main__":
    main()
