"""ModelStreamInfer: many requests and their answers, in the same order, over one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from cellfoundry_serving.endpoint.v2_grpc.refusals import STOPPING, Refusal

IN_HAND = 32  # requests of one stream, which share batches; further ones wait at the client


async def answer_stream(
    context: Any, answer: Callable[[Any], Coroutine[Any, Any, Any]], draining: asyncio.Event
) -> None:
    """Writes what ``answer`` makes of each request; ends when the client does.

    Once ``draining`` is set it takes no further request, and what it has taken is answered before the Refusal.
    Cancelling cancels all that is in hand.
    """
    in_hand: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(IN_HAND)

    async def read() -> bool:
        """Whether it was the client who ended."""
        while (request := await _next_request(context, draining)) not in (grpc.aio.EOF, None):
            await in_hand.put(tasks.create_task(answer(request)))
        await in_hand.put(None)
        return request is grpc.aio.EOF

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read())
        while (task := await in_hand.get()) is not None:
            await context.write(await task)
    if not reading.result():
        raise Refusal(grpc.StatusCode.UNAVAILABLE, STOPPING)


async def _next_request(context: Any, draining: asyncio.Event) -> Any:
    """The next request, EOF where the client has sent its last one, or None where the server drains."""
    reading, stopping = asyncio.ensure_future(context.read()), asyncio.ensure_future(draining.wait())
    try:
        await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return reading.result() if reading.done() else None
    finally:
        reading.cancel()
        stopping.cancel()
