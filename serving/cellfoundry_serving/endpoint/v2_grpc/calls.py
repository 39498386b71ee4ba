"""What each call of the protocol does, without what all of them share (keys, counting, errors)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from cellfoundry_serving.endpoint import v2_facts
from cellfoundry_serving.endpoint.aside import aside
from cellfoundry_serving.endpoint.cells import cells_from_tensors
from cellfoundry_serving.endpoint.errors import RequestError, too_slow
from cellfoundry_serving.endpoint.service import Service, check_loading, read_conventions
from cellfoundry_serving.endpoint.v2_grpc.tensors import decode, encode

Call = Callable[[Any], Awaitable[Any]]
"""Takes a request message; returns the answer, or its fields."""


def make_calls(service: Service, allow_load: bool) -> dict[str, Call]:
    """All calls that have one request and one answer, by name."""
    models = service.models

    async def server_live(_: Any) -> dict[str, Any]:
        return {"live": True}

    async def server_ready(_: Any) -> dict[str, Any]:
        return {"ready": not service.draining and bool(models.all())}

    async def model_ready(request: Any) -> dict[str, Any]:
        try:
            models.find(request.name, request.version or None)
        except RequestError:
            return {"ready": False}
        return {"ready": True}

    async def server_metadata(_: Any) -> dict[str, Any]:
        return v2_facts.server_metadata()

    async def model_metadata(request: Any) -> dict[str, Any]:
        found = models.find(request.name, request.version or None)
        facts = v2_facts.model_metadata(found, models.versions(request.name))
        del facts["parameters"]  # for which the message has no field
        return facts

    async def model_config(request: Any) -> dict[str, Any]:
        return {"config": v2_facts.model_config(models.find(request.name, request.version or None))}

    async def model_statistics(request: Any) -> dict[str, Any]:
        return v2_facts.statistics(models, request.name or None, request.version or None)

    async def infer(request: Any) -> Any:
        asked_of = request.model_name, request.model_version or None
        with models.find(*asked_of).in_use() as served:
            size = request.ByteSize()
            asked = await aside(size, partial(decode, request, v2_facts.OUTPUT))
            read = partial(cells_from_tensors, asked.tensors, len(served.index), service.limits.cells)
            cells = await aside(size, read)
            conventions = read_conventions(asked.parameters)
            try:
                async with asyncio.timeout(service.limits.timeout_s):
                    embedding = await service.embed(served, cells, conventions)
            except TimeoutError as error:
                raise too_slow(service.limits.timeout_s) from error
        answer = partial(encode, served.name, served.version, asked, v2_facts.OUTPUT, embedding)
        return await aside(embedding.nbytes, answer)

    async def repository_index(request: Any) -> dict[str, Any]:
        return {"models": v2_facts.repository_index(models, request.ready)}

    async def load(request: Any) -> dict[str, Any]:
        check_loading(allow_load, request.parameters)
        await models.load(request.model_name)
        return {}

    async def unload(request: Any) -> dict[str, Any]:
        check_loading(allow_load)  # Triton's client always sends a parameter: unload_dependents
        await models.unload(request.model_name)
        return {}

    return {
        "ServerLive": server_live,
        "ServerReady": server_ready,
        "ModelReady": model_ready,
        "ServerMetadata": server_metadata,
        "ModelMetadata": model_metadata,
        "ModelConfig": model_config,
        "ModelStatistics": model_statistics,
        "ModelInfer": infer,
        "RepositoryIndex": repository_index,
        "RepositoryModelLoad": load,
        "RepositoryModelUnload": unload,
    }
