"""The endpoint's own form: genes by name, JSON, Arrow or h5ad by Content-Type, answered as JSON or Arrow by Accept."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query, Request, Response

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint import arrow, h5ad, v2
from cellfoundry_serving.endpoint.aside import aside
from cellfoundry_serving.endpoint.cells import cells_from_json, listed_cells
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.gate import EMBEDS
from cellfoundry_serving.endpoint.h5ad import H5adReader
from cellfoundry_serving.endpoint.incoming import embed_for, read_cells_body, while_connected
from cellfoundry_serving.endpoint.models import ServedModel
from cellfoundry_serving.endpoint.openapi import embed_description
from cellfoundry_serving.endpoint.openapi_answers import EMBEDDED
from cellfoundry_serving.endpoint.openapi_errors import OF_CELLS
from cellfoundry_serving.endpoint.service import Service, read_conventions


def native_routes(service: Service, uploads: H5adReader) -> APIRouter:
    """Vocabulary and embeddings of cells with named genes."""
    router = APIRouter(prefix="/v1")

    @router.get("/vocabulary")
    async def vocabulary(
        model: str | None = Query(None, description="By default the first model."),
        version: str | None = Query(None, description="By default the newest."),
    ) -> dict[str, Any]:
        engine = service.models.find(model, version).engine
        return {"genes": list(engine.vocab_genes), "sha256": engine.info["vocabulary_sha256"]}

    @router.post(
        "/embed",
        openapi_extra=embed_description(),
        response_class=Response,
        responses=EMBEDDED | OF_CELLS,
        tags=[EMBEDS],
    )
    async def embed(request: Request) -> Response:
        """Embeddings (cells, width) of cells with named genes; a cell without counts gives nulls, in Arrow NaN."""
        body = await read_cells_body(request, service, is_json=is_json(request))
        listed, fields = await aside(len(body), partial(read_fields, request, body))
        with service.models.find(fields.pop("model", None), fields.pop("version", None)).in_use() as model:
            cells = await read_cells(request, body, listed, service, model, uploads)
            embedding = await embed_for(request, service, model, cells, read_conventions(fields))
        accept = request.headers.get("accept", "")
        response = await aside(embedding.nbytes, partial(answer, embedding, accept))
        response.headers[arrow.VERSION_HEADER] = str(model.version)
        return response

    return router


def read_fields(request: Request, body: bytes) -> tuple[Any, dict[str, Any]]:
    """The cells of a JSON body, else None, and what else is asked for: in the query, or beside those cells."""
    fields: dict[str, Any] = dict(request.query_params)
    if not is_json(request):
        return None, fields
    document = v2.parse_json(body, None)
    listed = listed_cells(document)
    for name in ("model", "version"):
        if name in document and not isinstance(document[name], str):
            raise RequestError(f"{name!r} must be text.")
    return listed, fields | document


async def read_cells(
    request: Request, body: bytes, listed: Any, service: Service, model: ServedModel, uploads: H5adReader
) -> CellBatch:
    """Cells of the body over the model's genes."""
    limit = service.limits.cells
    if media_type(request) == arrow.MEDIA_TYPE:
        return await aside(len(body), partial(arrow.cells_from_arrow, body, model.index, limit))
    if media_type(request) == h5ad.MEDIA_TYPE:
        reading = uploads.read(body, model.engine.vocab_genes)
        return await while_connected(request, reading, service.limits.timeout_s)
    return await aside(len(body), partial(cells_from_json, listed, model.index, limit))


def media_type(request: Request) -> str:
    """Content-Type without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(request: Request) -> bool:
    """Whether the body is read as JSON: whatever is not known is."""
    return media_type(request) not in (arrow.MEDIA_TYPE, h5ad.MEDIA_TYPE)


def answer(embedding: npt.NDArray[np.float32], accept: str) -> Response:
    """The rows in the form that the client accepts."""
    if arrow.MEDIA_TYPE in accept.lower():
        return Response(arrow.arrow_embedding(embedding), media_type=arrow.MEDIA_TYPE)
    rows = ", ".join(f"[{v2.json_numbers(row)}]" for row in embedding)
    document = f'{{"embedding": [{rows}], "width": {embedding.shape[1]}}}'
    return Response(document, media_type="application/json")
