"""The endpoint's HTTP application: all routes around one engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from cellfoundry_serving.endpoint.answers import add_error_answers
from cellfoundry_serving.endpoint.api_keys import ApiKeys
from cellfoundry_serving.endpoint.gate import Gate
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.routes_native import native_routes
from cellfoundry_serving.endpoint.routes_scfoundation import scfoundation_routes
from cellfoundry_serving.endpoint.routes_v2 import v2_routes
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.engines.base import Engine


def create_app(engine: Engine, limits: Limits | None = None, keys: ApiKeys | None = None) -> FastAPI:
    """The application around one open engine; without ``keys`` anyone who reaches it may ask."""
    service = Service(engine, limits or Limits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.open():
            yield

    # A description but no generated pages: those load scripts from elsewhere.
    app = FastAPI(
        title="CellFoundry", version=version("cellfoundry"), lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(Gate, metrics=service.metrics, keys=keys)
    add_error_answers(app)
    app.include_router(v2_routes(service))
    app.include_router(native_routes(service))
    app.include_router(scfoundation_routes(service))

    @app.get("/metrics")
    async def prometheus() -> PlainTextResponse:
        return PlainTextResponse(
            service.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    return app
