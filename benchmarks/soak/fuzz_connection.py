"""A kept-alive connection that sends bytes as they are and reads whatever HTTP/1.1 answers come."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from fuzz_probe import Probe
from soak_server import HOST

PATIENCE_S = 120.0
"""For an answer; the slowest is an h5ad's, behind others'."""
QUIET_S = 0.05
"""Without an answer on a connection whose frames are wrong: the endpoint waits for more."""
LONGEST_HEAD = 2**20


class ConnectionLost(Exception):
    """No whole answer came where one must."""


@dataclass(frozen=True)
class Answer:
    """One answer; names of headers are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """Connects when it has to, and again whenever the last request made the old connection useless."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def exchange(self, sent: Probe) -> list[Answer]:
        """The answers to a request: one, or for wrong frames any number.

        ConnectionLost where a whole request gets no whole answer, on a new connection too.
        """
        if not sent.whole:
            await self.close()
            return await self._open_ended(sent)
        is_new = self._writer is None
        try:
            return [await self._answered(sent)]
        except (ConnectionLost, OSError) as error:
            await self.close()
            if is_new:
                raise ConnectionLost(str(error) or type(error).__name__) from error
        return await self.exchange(sent)  # the endpoint may end a connection that was idle

    async def close(self) -> None:
        """Ends the connection."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None

    async def _write(self, pieces: tuple[bytes, ...]) -> asyncio.StreamReader:
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(HOST, self._port, limit=LONGEST_HEAD)
        for piece in pieces:
            self._writer.write(piece)
            await asyncio.sleep(0)  # a system call a piece
        await self._writer.drain()
        return self._reader

    async def _answered(self, sent: Probe) -> Answer:
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await read_answer(await self._write(sent.pieces), sent.method)
        except TimeoutError as error:
            raise ConnectionLost(f"no answer within {PATIENCE_S:g} s") from error
        if answer is None:
            raise ConnectionLost("the connection ended without an answer")
        if answer.headers.get("connection") == "close":
            await self.close()
        return answer

    async def _open_ended(self, sent: Probe) -> list[Answer]:
        """Whatever is answered until the endpoint ends the connection or falls silent."""
        answers: list[Answer] = []
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            reader = await self._write(sent.pieces)
            while True:
                try:
                    async with asyncio.timeout(QUIET_S):
                        begun = await reader.read(1)
                except TimeoutError:
                    break
                answer = await read_answer(reader, sent.method, begun) if begun else None
                if answer is None:
                    break
                answers.append(answer)
        await self.close()
        return answers


async def read_answer(reader: asyncio.StreamReader, method: str, begun: bytes = b"") -> Answer | None:
    """The next final answer, of which ``begun`` is read already; None where the connection has ended.

    ConnectionLost where it ends in the middle.
    """
    try:
        while True:
            head = begun + await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            status = int(first.split(" ")[1])
            if status != 100:
                break
            begun = b""
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = 0 if method == "HEAD" or status in (204, 304) else int(headers["content-length"])
        return Answer(status, headers, await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        if begun or error.partial:
            raise ConnectionLost(f"the answer was cut off: {(begun + error.partial)[:100]!r}") from error
        return None
    except (KeyError, ValueError, IndexError) as error:
        raise ConnectionLost(f"an answer that cannot be read: {head[:200]!r}") from error
