"""The endpoint's HTTP application: all routes around the served models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Response

from cellfoundry_serving.endpoint.answers import add_error_answers
from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.body_budget import BodyGate
from cellfoundry_serving.endpoint.gate import Gate
from cellfoundry_serving.endpoint.h5ad import H5adReader
from cellfoundry_serving.endpoint.openapi_answers import METRICS
from cellfoundry_serving.endpoint.openapi_errors import ANYWHERE, OF_CELLS, describe_keys, errors
from cellfoundry_serving.endpoint.results import Results, ResultStore
from cellfoundry_serving.endpoint.routes_models import models_routes
from cellfoundry_serving.endpoint.routes_native import native_routes
from cellfoundry_serving.endpoint.routes_page import page_routes
from cellfoundry_serving.endpoint.routes_repository import repository_routes
from cellfoundry_serving.endpoint.routes_scfoundation import scfoundation_routes
from cellfoundry_serving.endpoint.routes_umap import umap_routes
from cellfoundry_serving.endpoint.routes_v2 import v2_routes
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.endpoint.umap import UmapMaker

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(
    service: Service,
    keys: ApiKeys | None = None,
    allow_load: bool = False,
    results: ResultStore | None = None,
    sends_ids: bool = True,
    public_url: str | None = None,
) -> FastAPI:
    """The application around the models of a service.

    Args:
        service: not yet open; the application opens it.
        keys: without them anyone who reaches it may ask.
        allow_load: clients may load and unload models.
        results: where results wait that are fetched by URL; by default in this process.
        sends_ids: answers carry their request's id; False behind a proxy that gives it to them.
        public_url: where clients reach it, for links in answers; by default where the request came to.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.open():
            yield

    # A description but no generated pages: those load scripts from elsewhere.
    app = FastAPI(
        title="CellFoundry",
        version=version("cellfoundry"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=ANYWHERE,
    )
    describe_keys(app, keys is not None)
    app.add_middleware(BodyGate, budget=service.bodies)  # behind the gate, which counts what it refuses
    app.add_middleware(Gate, service=service, keys=keys, sends_ids=sends_ids)
    add_error_answers(app)
    turn = asyncio.Semaphore(1)
    uploads = H5adReader(service.limits, turn)
    app.include_router(v2_routes(service), responses=errors(404))
    app.include_router(repository_routes(service, allow_load), responses=errors(403, 404, 408, 413))
    app.include_router(native_routes(service, uploads), responses=errors(404))
    app.include_router(scfoundation_routes(service, results or Results(), public_url), responses=errors(404))
    app.include_router(models_routes(service))
    app.include_router(umap_routes(service, uploads, UmapMaker(turn)), responses=OF_CELLS | errors(415))
    app.include_router(page_routes())

    @app.get("/metrics", response_class=Response, responses=METRICS)
    async def prometheus() -> Response:
        return Response(service.metrics.text(), media_type=METRICS_TYPE)

    return app
