"""The V2 protocol's model repository extension: what is loaded, and loading what is new."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from cellfoundry_serving.endpoint import v2
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.incoming import read_body
from cellfoundry_serving.endpoint.openapi import INDEX_BODY, INDEX_EXAMPLES, described
from cellfoundry_serving.endpoint.service import Service, check_loading
from cellfoundry_serving.endpoint.v2_facts import repository_index


def repository_routes(service: Service, allow_load: bool) -> APIRouter:
    """The index for all; load and unload where ``allow_load``."""
    router = APIRouter(prefix="/v2/repository")

    @router.post("/index", openapi_extra=described(INDEX_BODY, INDEX_EXAMPLES, required=False))
    async def models(request: Request) -> list[dict[str, str]]:
        """All models; with ``{"ready": true}`` only those that are."""
        body = await read_body(request, service.limits)
        ready = v2.parse_json(body, None).get("ready", False) if body else False
        if not isinstance(ready, bool):
            raise RequestError("'ready' must be true or false.")
        return repository_index(service.models, ready)

    @router.post("/models/{model}/load", response_class=Response)
    async def load(model: str, request: Request) -> Response:
        """Opens versions that are new, and lets those go whose time is over, after the requests they have in hand."""
        check_loading(allow_load)
        body = await read_body(request, service.limits)
        check_loading(allow_load, v2.mapping(v2.parse_json(body, None), "parameters") if body else None)
        await service.models.load(model)
        return Response()

    @router.post("/models/{model}/unload", response_class=Response)
    async def unload(model: str) -> Response:
        """Lets a model go, after the requests it has in hand."""
        check_loading(allow_load)
        await service.models.unload(model)
        return Response()

    return router
