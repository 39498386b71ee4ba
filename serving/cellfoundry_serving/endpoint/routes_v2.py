"""Open Inference Protocol V2 over HTTP."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response

from cellfoundry_serving.endpoint import v2
from cellfoundry_serving.endpoint.cells import cells_from_tensors
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.incoming import read_body
from cellfoundry_serving.endpoint.openapi import V2_BODY, V2_EXAMPLES, described
from cellfoundry_serving.endpoint.service import MODEL_NAME, Service, read_conventions
from cellfoundry_serving.engines.base import Engine

OUTPUT = "embedding"


def v2_routes(service: Service) -> APIRouter:
    """Health, metadata and inference."""
    router = APIRouter(prefix="/v2")

    @router.get("")
    async def server() -> dict[str, Any]:
        return {
            "name": "cellfoundry",
            "version": version("cellfoundry"),
            "extensions": ["binary_tensor_data"],
        }

    @router.get("/health/live")
    @router.get("/health/ready")
    async def healthy() -> Response:
        return Response()

    @router.post("/repository/index")
    async def models() -> list[dict[str, str]]:
        return [{"name": MODEL_NAME, "version": "1", "state": "READY", "reason": ""}]

    @router.get("/models/{model}")
    @router.get("/models/{model}/versions/1")
    async def metadata(model: str) -> dict[str, Any]:
        check_model(model)
        return model_metadata(service.engine)

    @router.get("/models/{model}/ready")
    @router.get("/models/{model}/versions/1/ready")
    async def model_ready(model: str) -> Response:
        check_model(model)
        return Response()

    @router.post("/models/{model}/infer", openapi_extra=described(V2_BODY, V2_EXAMPLES))
    @router.post("/models/{model}/versions/1/infer", openapi_extra=described(V2_BODY, V2_EXAMPLES))
    async def infer(model: str, request: Request) -> Response:
        check_model(model)
        body = await read_body(request, service.limits)
        asked = v2.decode(body, request.headers.get(v2.HEADER_LENGTH), OUTPUT)
        cells = cells_from_tensors(asked.tensors, len(service.index), service.limits.cells)
        embedding = await service.embed(request, cells, read_conventions(asked.parameters))
        answer, headers = v2.encode(MODEL_NAME, asked, OUTPUT, embedding)
        return Response(answer, headers=headers)

    return router


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
