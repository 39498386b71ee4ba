"""The endpoint's own form: genes by name, JSON, Arrow or h5ad by Content-Type, answered as JSON or Arrow by Accept."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response

from cellfoundry_data.batch import CellBatch
from cellfoundry_serving.endpoint import arrow, h5ad, v2
from cellfoundry_serving.endpoint.cells import cells_from_json, listed_cells
from cellfoundry_serving.endpoint.h5ad import H5adReader
from cellfoundry_serving.endpoint.incoming import read_body, while_connected
from cellfoundry_serving.endpoint.openapi import embed_description
from cellfoundry_serving.endpoint.service import Service, read_conventions


def native_routes(service: Service) -> APIRouter:
    """Vocabulary and embeddings of cells with named genes."""
    router = APIRouter(prefix="/v1")
    uploads = H5adReader(service.engine.vocab_genes, service.limits)

    @router.get("/vocabulary")
    async def vocabulary() -> dict[str, Any]:
        engine = service.engine
        return {"genes": list(engine.vocab_genes), "sha256": engine.info["vocabulary_sha256"]}

    @router.post("/embed", openapi_extra=embed_description())
    async def embed(request: Request) -> Response:
        """Embeddings (cells, width) of cells with named genes; a cell without counts gives nulls, in Arrow NaN."""
        cells, fields = await read_cells(request, service, uploads)
        embedding = await service.embed(request, cells, read_conventions(fields))
        return answer(embedding, request.headers.get("accept", ""))

    return router


async def read_cells(
    request: Request, service: Service, uploads: H5adReader
) -> tuple[CellBatch, dict[str, Any]]:
    """Cells of the body, and what else was asked for: in the query, or beside the cells in JSON."""
    body = await read_body(request, service.limits)
    fields: dict[str, Any] = dict(request.query_params)
    if media_type(request) == arrow.MEDIA_TYPE:
        return arrow.cells_from_arrow(body, service.index, service.limits.cells), fields
    if media_type(request) == h5ad.MEDIA_TYPE:
        return await while_connected(request, uploads.read(body), service.limits.timeout_s), fields
    document = v2.parse_json(body, None)
    cells = cells_from_json(listed_cells(document), service.index, service.limits.cells)
    return cells, fields | document


def media_type(request: Request) -> str:
    """Content-Type without its parameters; whatever is not known is read as JSON."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def answer(embedding: npt.NDArray[np.float32], accept: str) -> Response:
    """The rows in the form that the client accepts."""
    if arrow.MEDIA_TYPE in accept.lower():
        return Response(arrow.arrow_embedding(embedding), media_type=arrow.MEDIA_TYPE)
    document = {"embedding": v2.json_numbers(embedding), "width": embedding.shape[1]}
    return Response(json.dumps(document, allow_nan=False), media_type="application/json")
