"""The endpoint's HTTP routes: Open Inference Protocol V2, a native JSON form, metrics."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cellfoundry_data.batch import CellBatch
from cellfoundry_model.errors import ModelError
from cellfoundry_serving.endpoint import v2
from cellfoundry_serving.endpoint.batcher import Conventions, TokenBatcher
from cellfoundry_serving.endpoint.cells import cells_from_json, cells_from_tensors
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.metrics import Metrics
from cellfoundry_serving.engines.base import POOLS, Engine
from cellfoundry_serving.errors import ServingError

MODEL_NAME = "cellfoundry"
OUTPUT = "embedding"
MAX_NAME = 32  # characters of a client's text that an error repeats


@dataclass(frozen=True)
class Limits:
    """What one request may hold; more is answered with 413."""

    body_bytes: int = 64 * 2**20
    cells: int = 4096


def create_app(engine: Engine, limits: Limits | None = None) -> FastAPI:
    """The application around one open engine; the batcher lives as long as the app's lifespan."""
    limits = limits or Limits()
    metrics = Metrics()
    index = {gene: position for position, gene in enumerate(engine.vocab_genes)}
    batchers: list[TokenBatcher] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batchers.append(TokenBatcher(engine))
        yield
        await batchers.pop().close()

    # No generated pages: they load scripts from elsewhere and know nothing of the bodies, which are read raw.
    app = FastAPI(title="CellFoundry", version=version("cellfoundry"), lifespan=lifespan, openapi_url=None)
    add_error_answers(app)

    @app.middleware("http")
    async def count(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        status = 500
        try:
            response = await answer(request)
            status = response.status_code
        finally:
            metrics.requests[status] += 1
        return response

    async def embed(cells: CellBatch, conventions: Conventions) -> npt.NDArray[np.float32]:
        started = time.perf_counter()
        embedding = await batchers[0].encode(cells, conventions)
        metrics.embedded(len(cells), time.perf_counter() - started)
        return embedding

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "cellfoundry", "version": app.version, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live")
    @app.get("/v2/health/ready")
    async def healthy() -> Response:
        return Response()

    @app.post("/v2/repository/index")
    async def models() -> list[dict[str, str]]:
        return [{"name": MODEL_NAME, "version": "1", "state": "READY", "reason": ""}]

    @app.get("/v2/models/{model}")
    @app.get("/v2/models/{model}/versions/1")
    async def metadata(model: str) -> dict[str, Any]:
        check_model(model)
        return model_metadata(engine)

    @app.get("/v2/models/{model}/ready")
    @app.get("/v2/models/{model}/versions/1/ready")
    async def model_ready(model: str) -> Response:
        check_model(model)
        return Response()

    @app.post("/v2/models/{model}/infer")
    @app.post("/v2/models/{model}/versions/1/infer")
    async def infer(model: str, request: Request) -> Response:
        check_model(model)
        body = await read_body(request, limits.body_bytes)
        asked = v2.decode(body, request.headers.get(v2.HEADER_LENGTH), OUTPUT)
        cells = cells_from_tensors(asked.tensors, len(index), limits.cells)
        embedding = await embed(cells, read_conventions(asked.parameters))
        answer, headers = v2.encode(MODEL_NAME, asked, OUTPUT, embedding)
        return Response(answer, headers=headers)

    @app.get("/v1/vocabulary")
    async def vocabulary() -> dict[str, Any]:
        return {"genes": list(engine.vocab_genes), "sha256": engine.info["vocabulary_sha256"]}

    @app.post("/v1/embed")
    async def embed_json(request: Request) -> Response:
        document = v2.parse_json(await read_body(request, limits.body_bytes), None)
        cells = cells_from_json(document.pop("cells", None), index, limits.cells)
        embedding = await embed(cells, read_conventions(document))
        answer = {"embedding": v2.json_numbers(embedding), "width": embedding.shape[1]}
        return Response(json.dumps(answer, allow_nan=False), media_type="application/json")

    @app.get("/metrics")
    async def prometheus() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def model_metadata(engine: Engine) -> dict[str, Any]:
    """Inputs, outputs and origin in the form that V2 asks for."""
    inputs = (("indptr", "INT64"), ("gene_ids", "INT32"), ("counts", "FP32"))
    return {
        "name": MODEL_NAME,
        "versions": ["1"],
        "platform": engine.name,
        "inputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in inputs],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, -1]}],
        "parameters": {
            "model_sha256": engine.info["weights_sha256"],
            "vocabulary_sha256": engine.info["vocabulary_sha256"],
        },
    }


def check_model(model: str) -> None:
    """404 for any model but the one served."""
    if model != MODEL_NAME:
        raise RequestError(f"There is no such model here; the model's name is {MODEL_NAME!r}.", 404)


def read_conventions(fields: dict[str, Any]) -> Conventions:
    """``pool`` and ``target``, by default "all" and "t4"; an unknown target is refused by the engine.

    Anything else is refused: an option that was silently ignored would give numbers that nobody asked for.
    """
    for name in fields.keys() - {"pool", "target"}:
        raise RequestError(f"There is no parameter {name[:MAX_NAME]!r}; the parameters are pool and target.")
    pool, target = fields.get("pool", "all"), fields.get("target", "t4")
    if pool not in POOLS:
        raise RequestError(f"'pool' must be one of {', '.join(POOLS)}.")
    if not isinstance(target, str) or len(target) > MAX_NAME:
        raise RequestError("'target' must be text such as 't4'.")
    return Conventions(pool, target)


async def read_body(request: Request, limit: int) -> bytes:
    """The body, or 413 as soon as it is known to be longer than ``limit`` bytes.

    A client that leaves midway is counted under 499, as web servers do; nobody reads the answer.
    """
    too_large = RequestError(f"The body is larger than {limit} bytes; send fewer cells at once.", 413)
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect as error:
        raise RequestError("The client left before its body ended.", 499) from error
    return bytes(body)


def add_error_answers(app: FastAPI) -> None:
    """Every error is ``{"error": one sentence}``; a defect of ours is logged by the server and answered with 500."""

    def answer(status: int, sentence: str) -> JSONResponse:
        return JSONResponse({"error": sentence}, status_code=status)

    @app.exception_handler(ServingError)
    @app.exception_handler(ModelError)
    async def refuse(_: Request, error: Exception) -> JSONResponse:
        return answer(error.status if isinstance(error, RequestError) else 400, str(error))

    @app.exception_handler(HTTPException)
    async def no_such_route(_: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> JSONResponse:
        return answer(500, "The server failed on this request; its log says why.")
