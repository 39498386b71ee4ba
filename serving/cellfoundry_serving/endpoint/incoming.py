"""A request's body and its client: read within limits, and noticed when it leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import Request
from starlette.requests import ClientDisconnect

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint.aside import aside
from cellfoundry_serving.endpoint.errors import RequestError, json_too_large, too_slow
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.models import ServedModel
from cellfoundry_serving.endpoint.pieces import Conventions
from cellfoundry_serving.endpoint.request_record import in_hand
from cellfoundry_serving.endpoint.service import Service

Result = TypeVar("Result")


async def read_cells_body(request: Request, service: Service, is_json: bool) -> bytes:
    """As ``read_body``, of a request for embeddings; 429 before the body is read where every queue is full.

    Reading and parsing it only to refuse it would take the time of requests that are under way.
    """
    service.models.check_room()
    return await read_body(request, service.limits, is_json)


async def read_body(request: Request, limits: Limits, is_json: bool = False) -> bytes:
    """The body; 413 as soon as it is known to be too long, 408 when it does not arrive in time.

    A client that leaves midway is counted under 499, as web servers do; nobody reads the answer.
    """
    began = time.perf_counter()
    try:
        async with asyncio.timeout(limits.timeout_s):
            body = await limited_body(request, limits, is_json)
    except TimeoutError as error:
        raise RequestError(f"The body did not arrive within {limits.timeout_s:g} s.", 408) from error
    except ClientDisconnect as error:
        raise RequestError("The client left before its body ended.", 499) from error
    if record := in_hand.get():
        record.bytes_in = len(body)
        record.note("read", began, time.perf_counter())
    return body


async def limited_body(request: Request, limits: Limits, is_json: bool) -> bytes:
    """The body within ``limits``."""
    limit = min(limits.body_bytes, limits.json_bytes) if is_json else limits.body_bytes
    too_large = RequestError(f"The body is larger than {limit} bytes; send fewer cells at once.", 413)
    if is_json and limit < limits.body_bytes:
        too_large = json_too_large(limit)
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise too_large
    return await aside(size, partial(b"".join, chunks))


async def embed_for(
    request: Request,
    service: Service,
    model: ServedModel,
    cells: CellBatch,
    conventions: Conventions,
    totals: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float32]:
    """``Service.embed`` for a client that waits."""
    work = service.embed(model, cells, conventions, totals)
    return await while_connected(request, work, service.limits.timeout_s)


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
        raise too_slow(timeout_s)
    finally:
        task.cancel()
        leaving.cancel()


async def disconnected(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
