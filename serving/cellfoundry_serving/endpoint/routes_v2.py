"""Open Inference Protocol V2 over HTTP: health, metadata, configuration, statistics and inference."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from cellfoundry_serving.endpoint import v2, v2_facts
from cellfoundry_serving.endpoint.aside import aside
from cellfoundry_serving.endpoint.cells import cells_from_tensors
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.gate import EMBEDS
from cellfoundry_serving.endpoint.incoming import embed_for, read_cells_body
from cellfoundry_serving.endpoint.openapi import V2_BODY, V2_EXAMPLES, described
from cellfoundry_serving.endpoint.openapi_answers import INFERRED
from cellfoundry_serving.endpoint.openapi_errors import OF_CELLS, errors
from cellfoundry_serving.endpoint.service import Service, read_conventions


def v2_routes(service: Service) -> APIRouter:
    """Every path of the protocol, with and without a version."""
    router = APIRouter(prefix="/v2")
    models = service.models

    # First, because every request is matched against the paths in this order.
    infer_description: dict[str, Any] = {
        "openapi_extra": described(V2_BODY, V2_EXAMPLES),
        "responses": INFERRED | OF_CELLS,
        "response_class": Response,
        "tags": [EMBEDS],
    }

    @router.post("/models/{model}/infer", **infer_description)
    @router.post("/models/{model}/versions/{version}/infer", **infer_description)
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        models.find(model, version)  # before the body arrives
        header_length = request.headers.get(v2.HEADER_LENGTH)
        body = await read_cells_body(request, service, is_json=header_length is None)
        decode = partial(v2.decode, body, header_length, v2_facts.OUTPUT, service.limits.json_bytes)
        asked = await aside(len(body), decode)
        with models.find(model, version).in_use() as served:
            read = partial(cells_from_tensors, asked.tensors, len(served.index), service.limits.cells)
            cells = await aside(len(body), read)
            embedding = await embed_for(request, service, served, cells, read_conventions(asked.parameters))
        encode = partial(v2.encode, served.name, served.version, asked, v2_facts.OUTPUT, embedding)
        answer, headers = await aside(embedding.nbytes, encode)
        return Response(answer, headers=headers)

    @router.get("")
    async def server() -> dict[str, Any]:
        return v2_facts.server_metadata()

    @router.get("/health/live", response_class=Response)
    async def live() -> Response:
        return Response()

    @router.get("/health/ready", response_class=Response, responses=errors(503))
    async def ready() -> Response:
        if service.draining:
            raise RequestError("The server is about to stop; ask another one.", 503)
        if not models.all():
            raise RequestError("No model is loaded; load one, or ask another server.", 503)
        return Response()

    @router.get("/models/stats")
    async def all_statistics() -> dict[str, Any]:
        return v2_facts.statistics(models)

    @router.get("/models/{model}")
    @router.get("/models/{model}/versions/{version}")
    async def metadata(model: str, version: str | None = None) -> dict[str, Any]:
        return v2_facts.model_metadata(models.find(model, version), models.versions(model))

    @router.get("/models/{model}/config")
    @router.get("/models/{model}/versions/{version}/config")
    async def config(model: str, version: str | None = None) -> dict[str, Any]:
        return v2_facts.model_config(models.find(model, version))

    @router.get("/models/{model}/ready", response_class=Response)
    @router.get("/models/{model}/versions/{version}/ready", response_class=Response)
    async def model_ready(model: str, version: str | None = None) -> Response:
        models.find(model, version)
        return Response()

    @router.get("/models/{model}/stats")
    @router.get("/models/{model}/versions/{version}/stats")
    async def statistics(model: str, version: str | None = None) -> dict[str, Any]:
        return v2_facts.statistics(models, model, version)

    return router
