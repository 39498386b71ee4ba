"""A request's body and its client: read within limits, and noticed when it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.limits import Limits

Result = TypeVar("Result")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body; 413 as soon as it is known to be too long, 408 when it does not arrive in time.

    A client that leaves midway is counted under 499, as web servers do; nobody reads the answer.
    """
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await limited_body(request, limits.body_bytes)
    except TimeoutError as error:
        raise RequestError(f"The body did not arrive within {limits.timeout_s:g} s.", 408) from error
    except ClientDisconnect as error:
        raise RequestError("The client left before its body ended.", 499) from error


async def limited_body(request: Request, limit: int) -> bytes:
    """The body of at most ``limit`` bytes."""
    too_large = RequestError(f"The body is larger than {limit} bytes; send fewer cells at once.", 413)
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


async def while_connected(request: Request, work: Coroutine[Any, Any, Result], timeout_s: float) -> Result:
    """The result of ``work`` for a request whose body has been read.

    Cancels the work when the client leaves (499) or ``timeout_s`` are over (504).
    """
    task = asyncio.create_task(work)
    leaving = asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait({task, leaving}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if leaving.done():
            raise RequestError("The client left before its answer.", 499)
        raise RequestError(f"The answer took longer than {timeout_s:g} s; send fewer cells at once.", 504)
    finally:
        task.cancel()
        leaving.cancel()


async def disconnected(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
