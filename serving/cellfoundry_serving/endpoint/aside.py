"""Work on large bodies beside the event loop, which would answer nobody else meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

INLINE_BYTES = 256 * 1024  # read within 10 ms; a thread costs 0.1 ms and a turn of the loop
_threads = ThreadPoolExecutor(
    2, "bodies"
)  # more would not be faster: mostly they hold the interpreter's lock


PIECE_BYTES = 2**20  # copied in 1 ms or less; CPython lets others run while it joins so many bytes


async def aside(size: int, work: Callable[[], Result]) -> Result:
    """The result of ``work`` on ``size`` bytes, in a thread where these are many.

    One call into C that keeps the interpreter's lock, such as ``json.loads``, stops the loop from there too: work in
    pieces, or limit its size.
    """
    if size <= INLINE_BYTES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_threads, work)


def joined_bytes(parts: Iterable[memoryview]) -> bytes:
    """Bytes of all ``parts``, one after another.

    Copied in pieces: a copy at once would keep the interpreter's lock, 50 MB for 20 to 50 ms.
    """
    return b"".join(
        bytes(part[first : first + PIECE_BYTES])
        for part in parts
        for first in range(0, len(part), PIECE_BYTES)
    )
