"""Open-loop HTTP/1.1 load from a process of its own: requests are due at a fixed rate, whether or not answers come.

Latency counts from the instant at which a request was due, not from when a connection was free for it: what a slow
server keeps waiting is measured too (no coordinated omission). The whole request arrives ready-made on standard input.
    python -m cellfoundry_bench.open_loop PORT RATE SECONDS CONNECTIONS < request
Prints one JSON object: a list of [seconds after the start at which it was due, latency, status] of every request.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np

from cellfoundry_bench.load_generator import CONTENT_LENGTH, HOST

CONNECTIONS = 256  # at most; a request that finds none free waits for one


@dataclass(frozen=True)
class Answer:
    """One request.

    Attributes:
        due_s: seconds after the start.
        latency_s: from then to the end of the answer.
        status: HTTP's.
    """

    due_s: float
    latency_s: float
    status: int


@dataclass(frozen=True)
class Offered:
    """What a run of the generator saw; ``rate`` is per second."""

    rate: float
    answers: list[Answer]

    def latency(self, percent: float, status: int = 200) -> float:
        """A percentile of the latencies of the answers with ``status``, in seconds; NaN where there is none."""
        latencies = [answer.latency_s for answer in self.answers if answer.status == status]
        return float(np.percentile(latencies, percent)) if latencies else float("nan")

    def count(self, status: int) -> int:
        """Answers with ``status``."""
        return sum(answer.status == status for answer in self.answers)


def offer(request: bytes, port: int, rate: float, seconds: float, connections: int = CONNECTIONS) -> Offered:
    """Run the generator as a process against ``port`` on loopback and wait for it."""
    command = [sys.executable, "-m", __spec__.name, *map(str, (port, rate, seconds, connections))]
    done = subprocess.run(command, input=request, capture_output=True, check=True, timeout=10 * seconds + 120)
    return Offered(rate, [Answer(*answer) for answer in json.loads(done.stdout)])


class Connections:
    """Kept-alive connections that are lent one request long; opened when needed, up to a bound."""

    def __init__(self, port: int, most: int) -> None:
        self._port = port
        self._room = asyncio.Semaphore(most)
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes) -> int:
        """Sends the request and reads its answer; gives the status."""
        async with self._room:
            reader, writer = await self._connection()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = CONTENT_LENGTH.search(head)
            if length is None:
                raise ValueError("the answer has no Content-Length")
            await reader.readexactly(int(length[1]))
            if b"\r\nconnection: close" in head.lower():
                writer.close()
            else:
                self._free.append((reader, writer))
            return int(head.split(b" ", 2)[1])

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A free one that the server has not closed since, or a new one."""
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(HOST, self._port)

    async def close(self) -> None:
        """Closes what is free."""
        for _, writer in self._free:
            writer.close()
            await writer.wait_closed()


async def run(request: bytes, port: int, rate: float, seconds: float, most: int) -> list[Answer]:
    """All requests that are due within ``seconds``, answered."""
    connections = Connections(port, most)
    await connections.ask(request)  # the server's first answer is not what is measured
    start = time.perf_counter()

    async def one(due_s: float) -> Answer:
        status = await connections.ask(request)
        return Answer(due_s, time.perf_counter() - start - due_s, status)

    tasks = []
    for number in range(int(rate * seconds)):
        due_s = number / rate
        if (ahead := start + due_s - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        tasks.append(asyncio.create_task(one(due_s)))
    answers = await asyncio.gather(*tasks)
    await connections.close()
    return answers


def main() -> None:
    """Entry point of the generator's process."""
    port, rate, seconds, most = sys.argv[1:]
    answers = asyncio.run(run(sys.stdin.buffer.read(), int(port), float(rate), float(seconds), int(most)))
    print(json.dumps([[answer.due_s, answer.latency_s, answer.status] for answer in answers]))


if __name__ == "__main__":
    main()
