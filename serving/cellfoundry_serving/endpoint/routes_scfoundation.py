"""The public scFoundation API: its client works here with only its URL changed."""

from __future__ import annotations

import asyncio
import io
import json
from functools import partial

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response

from cellfoundry_serving.encode import check_decoder_fits
from cellfoundry_serving.endpoint import v2
from cellfoundry_serving.endpoint.aside import aside
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.gate import EMBEDS, RESULTS_PATH
from cellfoundry_serving.endpoint.incoming import embed_for, read_cells_body
from cellfoundry_serving.endpoint.openapi import SCFOUNDATION_BODY, described
from cellfoundry_serving.endpoint.openapi_answers import KEPT_RESULT, RESULT
from cellfoundry_serving.endpoint.openapi_errors import OF_CELLS
from cellfoundry_serving.endpoint.results import MAX_BYTES, ResultStore
from cellfoundry_serving.endpoint.scfoundation_request import read_request
from cellfoundry_serving.endpoint.service import Service
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError


def scfoundation_routes(service: Service, results: ResultStore, public_url: str | None) -> APIRouter:
    """One POST that answers with a URL, and the GET behind that URL, under ``public_url`` where that is given."""
    router = APIRouter()

    @router.post(
        "/inference/xtrimogene",
        openapi_extra=described(SCFOUNDATION_BODY, {}),
        response_class=Response,
        responses=KEPT_RESULT | OF_CELLS,
        tags=[EMBEDS],
    )
    async def infer(request: Request) -> Response:
        """Takes the public scFoundation API's request; the answer names a URL where the result is, as .npy."""
        body = await read_cells_body(request, service, is_json=True)
        document = await aside(len(body), partial(v2.parse_json, body, None))
        with service.models.find().in_use() as model:
            read = partial(read_request, document, len(model.index), service.limits.cells)
            asked = await aside(len(body), read)
            if asked.conventions.output != "cell":
                check_decoder(model.engine)
            embedding = await embed_for(request, service, model, asked.cells, asked.conventions, asked.totals)
        content = await asyncio.to_thread(npy_bytes, embedding)
        if len(content) > MAX_BYTES:
            raise RequestError(f"The result is larger than {MAX_BYTES} bytes; send fewer cells at once.", 413)
        name = await results.keep(content)
        url = f"{public_url or address_of(request)}{RESULTS_PATH}{name}.npy"
        output = {"name": "result", "datatype": "BYTES", "shape": [1], "data": [url]}
        answer = {
            "model_name": model.name,
            "model_version": str(model.version),
            "id": str(document.get("id", "")),
            "outputs": [output],
        }
        # In ASCII: an id may hold half a surrogate pair, which UTF-8 cannot.
        return Response(json.dumps(answer), media_type="application/json")

    @router.get(RESULTS_PATH + "{name}.npy", response_class=Response, responses=RESULT)
    async def result(name: str) -> Response:
        """A result in numpy's format, for as long as newer ones leave it room."""
        content = await results.get(name)
        if content is None:
            raise RequestError("There is no such result, or newer ones have taken its place; ask again.", 404)
        return Response(content, media_type="application/octet-stream")

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


def address_of(request: Request) -> str:
    """Where the request came to, not its Host header: that of the public client is made up."""
    host, port = request.scope["server"]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
