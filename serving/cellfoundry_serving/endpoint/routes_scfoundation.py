"""The public scFoundation API: its client works here with only its URL changed."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response

from cellfoundry_serving.encode import check_decoder_fits
from cellfoundry_serving.endpoint import v2
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.gate import RESULTS_PATH
from cellfoundry_serving.endpoint.incoming import read_body
from cellfoundry_serving.endpoint.results import Results
from cellfoundry_serving.endpoint.scfoundation_request import read_request
from cellfoundry_serving.endpoint.service import MODEL_NAME, Service
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError


def scfoundation_routes(service: Service) -> APIRouter:
    """One POST that answers with a URL, and the GET behind that URL."""
    router = APIRouter()
    results = Results()

    @router.post("/inference/xtrimogene")
    async def infer(request: Request) -> dict[str, Any]:
        """Takes the public scFoundation API's request; the answer names a URL where the result is, as .npy."""
        document = v2.parse_json(await read_body(request, service.limits), None)
        asked = read_request(document, len(service.index), service.limits.cells)
        if asked.conventions.output != "cell":
            check_decoder(service.engine)
        embedding = await service.embed(request, asked.cells, asked.conventions, asked.totals)
        name = results.keep(await asyncio.to_thread(npy_bytes, embedding))
        output = {"name": "result", "datatype": "BYTES", "shape": [1], "data": [result_url(request, name)]}
        return {
            "model_name": MODEL_NAME,
            "model_version": "1",
            "id": str(document.get("id", "")),
            "outputs": [output],
        }

    @router.get(RESULTS_PATH + "{name}.npy")
    async def result(name: str) -> Response:
        """A result in numpy's format, for as long as newer ones leave it room."""
        return Response(results.get(name), media_type="application/octet-stream")

    return router


def check_decoder(engine: Engine) -> None:
    """400 where the engine cannot compute gene embeddings."""
    try:
        check_decoder_fits(engine.info, "gene")
        engine.shape("gene", "all")
    except ServingError as error:
        raise RequestError(str(error)) from error


def npy_bytes(array: npt.NDArray[np.float32]) -> bytes:
    """The array as a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def result_url(request: Request, name: str) -> str:
    """At the address that the request came to, not at its Host header: that of the public client is made up."""
    host, port = request.scope["server"]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{RESULTS_PATH}{name}.npy"
